"""The default generators: one for each purpose, restarted by `manual_seed`."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.numerics.random import Purpose, Seeds, default_generator, generator


def test_the_same_seed_gives_the_same_layers() -> None:
    nn.manual_seed(5)
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    nn.manual_seed(5)
    again = nn.Linear(4, 3)
    np.testing.assert_array_equal(one.weight.data, again.weight.data)
    assert not np.array_equal(one.weight.data, other.weight.data)


def test_dropout_that_exists_already_is_seeded_too() -> None:
    layer, ones = nn.Dropout(), Tensor(np.ones(64))
    nn.manual_seed(5)
    mask = layer(ones).data
    nn.manual_seed(5)
    np.testing.assert_array_equal(layer(ones).data, mask)


def test_the_default_generator_is_one_object_a_purpose() -> None:
    before = default_generator(Purpose.DROPOUT)
    nn.manual_seed(1)
    assert default_generator(Purpose.DROPOUT) is before
    assert default_generator(Purpose.INITIALISE) is not before


def test_an_own_generator_leaves_the_default_one_alone() -> None:
    nn.manual_seed(5)
    expected = nn.Linear(4, 3).weight.data
    nn.manual_seed(5)
    nn.Sequential(nn.Linear(4, 3, rng=np.random.Generator(np.random.Philox(1))), nn.ReLU())
    np.testing.assert_array_equal(nn.Linear(4, 3).weight.data, expected)


WORDS = st.integers(0, 2**64 - 1)
SEEDS = Seeds(Purpose.DROPOUT)


@given(seed=WORDS, at=WORDS, micro_batch=WORDS)
@settings(derandomize=True, deadline=None)
def test_seeds_are_what_a_generator_of_that_place_draws_first(seed: int, at: int, micro_batch: int) -> None:
    drawn = generator(seed, Purpose.DROPOUT, at=at, micro_batch=micro_batch).integers(2**63)
    assert SEEDS.at(seed, at=at, micro_batch=micro_batch) == drawn
    # Whatever was drawn before.
    assert SEEDS.at(seed, at=at, micro_batch=micro_batch) == drawn
