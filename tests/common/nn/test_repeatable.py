from common.nn.layers.activations import ReLU
from common.nn.layers.containers import Sequential
from common.nn.layers.dropout import Dropout
from common.nn.layers.linear import Linear
from common.nn.layers.normalization import BatchNorm1d
from common.nn.models import MODELS
from common.nn.repeatable import is_repeatable


def test_the_models_of_the_library_are_repeatable() -> None:
    assert all(is_repeatable(build()) for build in MODELS.values())


def test_what_draws_or_observes_is_not() -> None:
    assert not is_repeatable(Sequential(Linear(2, 2), Dropout(0.5)))
    assert not is_repeatable(Sequential(Sequential(Linear(2, 2), BatchNorm1d(2))))


def test_a_class_of_ones_own_is_not_even_where_it_is_derived() -> None:
    class Doubled(Linear):
        pass

    assert is_repeatable(Sequential(Linear(2, 2), ReLU()))
    assert not is_repeatable(Sequential(Doubled(2, 2), ReLU()))
