import copy

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.layers.activations import Dropout, ReLU
from lockstep.common.nn.layers.containers import Sequential
from lockstep.common.nn.layers.linear import Linear
from lockstep.common.nn.layers.normalization import BatchNorm1d
from lockstep.common.nn.models import MODELS
from lockstep.common.nn.module import Module, RunningStatistic, first_unrepeatable
from tests.lockstep.common.nn.examples import rng


class Residual(Module):
    """A module as a person would write one: parameters of its own, children, a shared child."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.tied = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.scale * self.body(x))


def test_a_parameter_is_found_by_its_attributes_name_and_a_shared_one_once() -> None:
    names = [name for name, _ in Residual().named_parameters()]
    assert names == [
        "scale",
        "body.0.weight",
        "body.0.bias",
        "body.1.weight",
        "body.1.bias",
        "head.weight",
        "head.bias",
    ]


def test_modules_come_depth_first_and_a_shared_one_once_unless_asked() -> None:
    model = Residual()
    names = [name for name, _ in model.named_modules()]
    assert names == ["", "body", "body.0", "body.1", "body.2", "head"]
    assert [name for name, _ in model.named_modules(remove_duplicate=False)] == [*names, "tied"]
    assert [name for name, _ in model.named_children()] == ["body", "head"]
    assert list(model.children()) == [model.body, model.head]
    assert next(model.modules()) is model


def test_running_statistics_are_buffers() -> None:
    model = Residual()
    assert [name for name, _ in model.named_buffers()] == ["body.1.running_mean", "body.1.running_var"]
    assert all(isinstance(statistic, RunningStatistic) for statistic in model.buffers())


def test_a_typo_raises() -> None:
    with pytest.raises(AttributeError, match="wieght"):
        _ = nn.Linear(2, 2).wieght  # type: ignore[attr-defined]


def test_a_module_that_forgets_super_init_still_works() -> None:
    class Forgetful(Module):
        def __init__(self) -> None:
            self.inner = nn.Linear(2, 2)

    assert [name for name, _ in Forgetful().named_parameters()] == ["inner.weight", "inner.bias"]


def test_forward_must_be_defined() -> None:
    class Empty(Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty has no forward: define `def forward"):
        Empty()(1)


def test_arguments_where_none_are_expected_raise() -> None:
    with pytest.raises(TypeError):
        nn.ReLU(3)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [np.zeros((2, 2), np.float32), Tensor([[1.0]]), 3])
def test_a_parameter_is_not_replaced_by_something_else(value: object) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"cannot replace parameter 'weight'.*`weight.data\[...\] = values`"):
        layer.weight = value  # type: ignore[assignment]
    layer.bias = None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_a_plain_list_of_modules_is_refused() -> None:
    model = nn.Sequential()
    with pytest.raises(TypeError, match=r"`self\.layers = nn\.ModuleList"):
        model.layers = [nn.Linear(2, 2)]


@pytest.mark.parametrize("name", ["", "a.b", "forward", "0"])
def test_add_module_refuses_names_that_do_not_work(name: str) -> None:
    with pytest.raises(KeyError, match="cannot name a module"):
        nn.Sequential(nn.ReLU()).add_module(name, nn.ReLU())


def test_train_and_eval_reach_every_module() -> None:
    model = Residual()
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())


def test_apply_calls_children_first() -> None:
    model, seen = Residual(), list[str]()
    assert model.apply(lambda module: seen.append(type(module).__name__)) is model
    assert seen == ["Linear", "BatchNorm1d", "ReLU", "Sequential", "Linear", "Residual"]


def test_zero_grad_drops_all_gradients() -> None:
    model = Residual()
    model(Tensor(rng().normal(size=(3, 4)))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_state_dict_has_pytorchs_order_and_holds_copies() -> None:
    model = Residual()
    state = model.state_dict()
    assert list(state) == [
        "scale",
        *("body.0.weight", "body.0.bias"),
        *("body.1.weight", "body.1.bias", "body.1.running_mean", "body.1.running_var"),
        *("head.weight", "head.bias", "tied.weight", "tied.bias"),
    ]
    state["scale"][...] = 7
    assert model.scale.data == 1


def test_load_state_dict_writes_into_the_arrays_that_are_there() -> None:
    source, target = Residual().initialize(1), Residual().initialize(2)
    source.body(Tensor(rng().normal(size=(3, 4))))
    arrays = [parameter.data for parameter in target.parameters()]
    target.load_state_dict(source.state_dict())
    for name, array in source.state_dict().items():
        np.testing.assert_array_equal(target.state_dict()[name], array)
    assert all(parameter.data is array for parameter, array in zip(target.parameters(), arrays, strict=True))


def test_initialize_depends_on_the_seed_alone_and_layers_of_one_shape_differ() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    first = model.initialize(3).state_dict()
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).initialize(3).state_dict()
    assert all(np.array_equal(first[name], other[name]) for name in first)
    assert not np.array_equal(first["0.weight"], first["1.weight"])
    assert not np.array_equal(first["0.weight"], model.initialize(4).state_dict()["0.weight"])


def test_initialize_writes_in_place() -> None:
    layer = nn.Linear(3, 2)
    flat = np.zeros(8, np.float32)
    layer.weight.data = flat[:6].reshape(2, 3)
    layer.initialize(0)
    assert flat[:6].all()
    assert not flat[6:].any()


def test_observe_outputs_names_each_output_in_order_and_ends_with_the_context() -> None:
    model, seen = Residual(), list[tuple[str, str]]()
    x = Tensor(rng().normal(size=(3, 4)))
    with model.observe_outputs(lambda name, module, output: seen.append((name, type(module).__name__))):
        y = model(x)
    model(x)
    assert seen == [
        *(("body.0", "Linear"), ("body.1", "BatchNorm1d"), ("body.2", "ReLU"), ("body", "Sequential")),
        *(("head", "Linear"), ("", "Residual")),
    ]
    assert y.shape == (3, 2)


def test_observe_outputs_ends_when_forward_raises() -> None:
    model, seen = nn.Linear(4, 2), list[str]()
    with pytest.raises(ValueError, match=r"shape|mismatch"), model.observe_outputs(lambda name, *_: seen.append(name)):
        model(Tensor(np.ones((3, 5))))
    model(Tensor(np.ones((3, 4))))
    assert seen == []


def test_repr_is_a_tree() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential({"act": nn.ReLU(), "drop": nn.Dropout(0.1)}), nn.Sequential())
    assert repr(model) == "\n".join(
        [
            "Sequential(",
            "  (0): Linear(in_features=4, out_features=3, bias=True)",
            "  (1): Sequential(",
            "    (act): ReLU()",
            "    (drop): Dropout(p=0.1)",
            "  )",
            "  (2): Sequential()",
            ")",
        ]
    )


def test_a_parameter_wants_a_gradient_unless_told() -> None:
    assert nn.Parameter([1.0, 2.0]).requires_grad
    assert not nn.Parameter([1.0], requires_grad=False).requires_grad
    assert nn.Parameter([1.0, 2.0]).dtype == np.float32
    assert nn.Parameter(np.zeros(2)).dtype == np.float64


def test_it_shares_the_memory_it_is_given() -> None:
    flat = np.zeros(4, np.float32)
    nn.Parameter(flat[1:3]).data[...] = 1
    assert flat.tolist() == [0, 1, 1, 0]


def test_results_are_plain_tensors() -> None:
    assert type(nn.Parameter([1.0]) * 2) is Tensor


def test_a_deep_copy_shares_nothing() -> None:
    parameter = nn.Parameter([1.0, 2.0])
    (parameter * 3).sum().backward()
    twin = copy.deepcopy(parameter)
    twin.data[...] = 0
    assert twin.grad is not parameter.grad
    assert isinstance(twin, nn.Parameter)
    assert parameter.data.tolist() == [1, 2]


def test_integers_cannot_be_trained() -> None:
    with pytest.raises((TypeError, RuntimeError), match="float"):
        nn.Parameter(np.array([1, 2]))


def test_the_models_of_the_library_are_repeatable() -> None:
    assert not any(first_unrepeatable(build()) for build in MODELS.values())


def test_what_draws_and_what_observes_is_repeatable() -> None:
    assert first_unrepeatable(Sequential(Linear(2, 2), Dropout(0.5))) is None
    assert first_unrepeatable(Sequential(Sequential(Linear(2, 2), BatchNorm1d(2)))) is None


def test_a_class_of_ones_own_is_not_even_where_it_is_derived() -> None:
    class Doubled(Linear):
        pass

    assert first_unrepeatable(Sequential(Linear(2, 2), ReLU())) is None
    assert first_unrepeatable(Sequential(Doubled(2, 2), ReLU())) == "0 (Doubled)"


def test_an_observation_moves_the_value_by_momentum_in_place() -> None:
    value = np.array([1.0, 2.0], np.float32)
    statistic = RunningStatistic(value, momentum=0.25)
    statistic.observe(np.array([5.0, 2.0]), count=7)
    assert statistic.value is value
    assert value.tolist() == [2.0, 2.0]


def test_with_a_view_set_the_weighted_observation_goes_there_and_the_value_stays() -> None:
    flat = np.full(4, 9.0, np.float32)
    statistic = RunningStatistic(np.zeros(2, np.float32), momentum=0.25)
    statistic.observed = flat[1:3]
    statistic.observe(np.array([5.0, 2.0]), count=7)
    assert statistic.value.tolist() == [0.0, 0.0]
    assert flat.tolist() == [9.0, 35.0, 14.0, 9.0]


def test_the_reduced_observations_of_two_pieces_update_as_their_weighted_mean() -> None:
    pieces = [(np.array([1.0]), 3), (np.array([5.0]), 1)]
    worker, server = (RunningStatistic(np.zeros(1, np.float32), momentum=0.5) for _ in range(2))
    total = np.zeros(1, np.float32)
    for observation, count in pieces:
        worker.observed = np.zeros(1, np.float32)
        worker.observe(observation, count)
        total += worker.observed
    server.update(total / 4)
    assert server.value.tolist() == [1.0]
