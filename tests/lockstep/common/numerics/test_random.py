"""The default generators: one for each purpose, restarted by `manual_seed`; floats have the distribution of their
name.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.numerics.random import (
    Purpose,
    Seeds,
    default_generator,
    generator,
    normal,
    normal_quantile,
    uniform,
)
from tests.lockstep.common.numerics import reference


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


#: The centre, both sides, both ends, and the least and greatest that can be drawn.
_SHARES = np.concatenate(
    [
        np.random.default_rng(0).random(2_000),
        [0.0, 0.5, 0.075, 0.925, 2.0**-53, 1.0 - 2.0**-53, 1e-9, math.exp(-25.0), 1.0 - 2.0**-40],
    ]
)


def _generator() -> np.random.Generator:
    return generator(3, Purpose.INITIALISE, at=1, layer=2)


def test_normal_numbers_have_the_bits_of_the_contract() -> None:
    shares = np.floor(_SHARES * 2.0**53) / 2.0**53
    expected = [reference.normal(share) for share in shares.tolist()]
    assert normal_quantile(shares).tobytes() == np.array(expected).tobytes()


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    shares = _SHARES[_SHARES > 0.0]
    expected = [NormalDist().inv_cdf(share) for share in shares.tolist()]
    np.testing.assert_allclose(normal_quantile(shares), expected, rtol=2e-15, atol=1e-15)


def test_a_share_of_zero_is_finite() -> None:
    assert -8.5 < normal_quantile(np.zeros(1))[0] < normal_quantile(np.full(1, 2.0**-53))[0] < -8.2


def test_one_number_is_drawn_for_each() -> None:
    rng, other = _generator(), _generator()
    drawn = normal(rng, 1.0, 2.0, (5, 7_000))
    assert drawn.tobytes() == (1.0 + 2.0 * normal_quantile(other.random((5, 7_000)))).tobytes()
    assert rng.random() == other.random()


def test_drawn_numbers_are_normal() -> None:
    drawn = normal(_generator(), 3.0, 0.5, (100_000,))
    assert abs(float(drawn.mean()) - 3.0) < 0.01
    assert abs(float(drawn.std()) - 0.5) < 0.01
    assert abs(float(np.mean(drawn > 3.5)) - 0.1587) < 0.005


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_numbers_have_the_shape_that_is_asked_for(shape: tuple[int, ...]) -> None:
    assert normal(_generator(), 0.0, 1.0, shape).shape == shape
    assert np.shape(uniform(_generator(), 0.0, 1.0, shape)) == shape


def test_uniform_numbers_are_whole_numbers_of_the_generator_scaled() -> None:
    words = _generator().bit_generator.random_raw(5)
    expected = [-1.0 + 3.0 * (int(word) >> 11) * 2.0**-53 for word in words]
    assert uniform(_generator(), -1.0, 2.0, (5,)).tolist() == expected


def test_bits_are_those_of_philox() -> None:
    # Of the generator's description (Salmon et al., SC 2011), by whole numbers of Python alone.
    assert _generator().bit_generator.random_raw(8).tolist() == [
        word for count in (1, 2) for word in _philox([count, 2, 0, 1], [3, int(Purpose.INITIALISE)])
    ]


def _philox(counter: list[int], key: list[int]) -> list[int]:
    most = 2**64 - 1
    for _ in range(10):
        one, other = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
        counter = [(other >> 64) ^ counter[1] ^ key[0], other & most, (one >> 64) ^ counter[3] ^ key[1], one & most]
        key = [(key[0] + 0x9E3779B97F4A7C15) & most, (key[1] + 0xBB67AE8584CAA73B) & most]
    return counter


@pytest.mark.parametrize("std", [-1.0, math.nan])
def test_a_deviation_below_zero_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="std is"):
        normal(_generator(), 0.0, std, (3,))


def test_an_infinite_range_is_refused() -> None:
    with pytest.raises(OverflowError, match="not finite"):
        uniform(_generator(), 0.0, math.inf, (3,))
