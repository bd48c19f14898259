"""Counter-based random numbers (rule R2): they depend on the key alone, never on earlier draws.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a key and a counter into
random bits. Seed and purpose are the key; the rest is the counter, so that no generator's state is carried anywhere.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """A use of random numbers: two purposes never share a stream. The values are a part of every run's bits."""

    INITIALISE = 1
    SHUFFLE = 2
    AUGMENT = 3
    DROPOUT = 4
    CANARY = 5
    SIMULATE = 6
    VALIDATE = 7
    AUDIT = 8
    #: The value of AUDIT too, which can no longer change. Their draws still differ: `layer` is 0 there and never here.
    ROUND = 8
    TEST_SPLIT = 9
    TRANSFORM = 10


def generator(
    seed: int, purpose: Purpose, *, at: int = 0, micro_batch: int = 0, layer: int = 0, first: int = 0
) -> np.random.Generator:
    """Return the generator of one place in a run; each place has 2**64 counts, of 256 bits each, of its own.

    `at` is the step, or the epoch for what belongs to an epoch; `first` is the count at which to begin. All arguments
    are in [0, 2**64).
    """
    # Philox counts up from the lowest word, so what distinguishes places goes into the higher ones.
    counter = np.array([first, layer, micro_batch, at], dtype=np.uint64)
    key = np.array([seed, int(purpose)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


class Seeds:
    """Draws one number for each place of a purpose: as `generator` does, without making one for each.

    Not for several threads at once.
    """

    def __init__(self, purpose: Purpose) -> None:
        self._purpose = int(purpose)
        self._philox = np.random.Philox()
        self._state = self._philox.state
        place = self._state["state"]
        self._counter, self._key = place["counter"], place["key"]

    def at(self, seed: int, *, at: int, micro_batch: int) -> int:
        """Return what `generator(seed, purpose, at=at, micro_batch=micro_batch).integers(2**63)` does."""
        self._counter[:] = 0, 0, micro_batch, at
        self._key[:] = seed, self._purpose
        # It is a copy, in which nothing was drawn: setting it begins at that place.
        self._philox.state = self._state
        # Below a power of two no draw is rejected, and its highest bits are taken.
        return int(self._philox.random_raw()) >> 1


def shared_generators() -> Iterator[tuple[str, object]]:
    """Yield the generators that all code of a process shares, which nothing of ours uses, with their states."""
    yield "Python's random", random.getstate()
    yield "numpy.random", repr(np.random.get_state())


def generator_state(value: object) -> object:
    """Return the state of a generator of numbers, of Python's or of NumPy's kind; None if it is something else."""
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    return repr(value.get_state()) if isinstance(value, np.random.RandomState) else None


@dataclass(eq=False, slots=True)
class Source:
    """Draws from a generator that is replaced from time to time: a computation to be repeated keeps the source."""

    rng: np.random.Generator

    def random(self, shape: tuple[int, ...], dtype: type[np.float32]) -> NDArray[np.float32]:
        """Return numbers from 0 to 1, as `Generator.random` does."""
        return self.rng.random(shape, dtype=dtype)


#: Used when no generator is passed, in notebooks: a run keys its draws by their place.
_defaults = {purpose: generator(0, purpose) for purpose in (Purpose.INITIALISE, Purpose.DROPOUT)}


def manual_seed(seed: int) -> None:
    """Restart the default generators, those of dropout layers that exist already included.

    Affects layers that are given no `rng`, and dropout that has not been reseeded. Raises OverflowError for a `seed`
    that is not a whole number in [0, 2**64).

    Differs from PyTorch: a run does not depend on it; it draws from the job's seed.
    """
    for purpose, default in _defaults.items():
        # In place: a dropout layer holds on to its generator.
        default.bit_generator.state = generator(seed, purpose).bit_generator.state


@contextmanager
def seeded_defaults(seed: int) -> Iterator[None]:
    """Within the context, let the default generators begin as after `manual_seed`; afterwards, as they were before."""
    before = {purpose: default.bit_generator.state for purpose, default in _defaults.items()}
    manual_seed(seed)
    try:
        yield
    finally:
        for purpose, default in _defaults.items():
            default.bit_generator.state = before[purpose]


def default_generator(purpose: Purpose) -> np.random.Generator:
    """Return the process-wide generator of `purpose`, INITIALISE or DROPOUT."""
    return _defaults[purpose]


Doubles = NDArray[np.float64]

# Floats of a distribution, by operations that IEEE 754 fixes. NumPy's own normal numbers take their tails from the
# mathematics library of the system, and its compiler may fuse what scales a uniform number. `Generator.random` is whole
# numbers of Philox times a power of two, the same everywhere.

#: Numbers that are made at once, so that their arrays stay in a cache.
_BLOCK = 16_384

# AS 241, routine PPND16 (Wichura, "The percentage points of the normal distribution", Applied Statistics 37, 1988):
# numerator and denominator for the centre, the sides and the ends, from the lowest power on.
_CENTRE = (
    (
        *(3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4),
        *(4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    ),
    (
        *(1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3),
        *(2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
    ),
)
_SIDE = (
    (
        *(1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0),
        *(1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    ),
    (
        *(1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1),
        *(1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
    ),
)
_END = (
    (
        *(6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1),
        *(2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    ),
    (
        *(1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2),
        *(7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
    ),
)

_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
#: log2(m) = s P(s²) with s = (m - 1) / (m + 1), as in the kernels' `power`: from the lowest power on.
_LOG2 = tuple(
    map(
        float.fromhex,
        (
            *("0x1.71547652b82ffp+1", "0x1.ec709dc39c6a7p-1", "0x1.2776c516fcc93p-1", "0x1.a617561af612ep-2"),
            *("0x1.484fc3665c05ep-2", "0x1.0bb5069535d90p-2", "0x1.f1c166865e00fp-3"),
        ),
    )
)


def uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> Doubles:
    """Draw from U(low, high). Raises OverflowError for an infinite range."""
    width = high - low
    if not math.isfinite(width):
        raise OverflowError(f"the range from {low!r} to {high!r} is not finite")
    return low + width * rng.random(shape)


def normal(rng: np.random.Generator, mean: float, std: float, shape: tuple[int, ...]) -> Doubles:
    """Draw from N(mean, std²), one number from each uniform one. Raises ValueError for an `std` below 0."""
    if not std >= 0.0:
        raise ValueError(f"std is {std!r}: expected a number of at least 0")
    drawn = np.empty(shape)
    for block in _blocks(drawn.reshape(-1)):
        block[...] = mean + std * normal_quantile(rng.random(block.shape))
    return drawn


def normal_quantile(share: Doubles) -> Doubles:
    """Return the number below which that share of N(0, 1) lies, for multiples of 2**-53 from 0 to 1."""
    q = share - 0.5
    result = q * _ratio(_CENTRE, 0.180625 - q * q)
    far = np.abs(q) > 0.425
    # Zero is drawn once in 2**53 times, and counts as half of the least number above it.
    tail = np.maximum(np.minimum(share[far], 1.0 - share[far]), 2.0**-54)
    r = np.sqrt(-_LN2 * _log2(tail))
    size = np.where(r <= 5.0, _ratio(_SIDE, r - 1.6), _ratio(_END, r - 5.0))
    result[far] = np.where(q[far] < 0.0, -size, size)
    return result


def _blocks(flat: Doubles) -> Iterator[Doubles]:
    for first in range(0, len(flat), _BLOCK):
        yield flat[first : first + _BLOCK]


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Doubles) -> Doubles:
    numerator, denominator = coefficients
    return _polynomial(numerator, x) / _polynomial(denominator, x)


def _log2(x: Doubles) -> Doubles:
    """Return the binary logarithm of normal numbers above 0."""
    mantissa, twos = np.frexp(x)
    is_small = mantissa < math.sqrt(0.5)
    mantissa = np.where(is_small, 2.0 * mantissa, mantissa)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    result: Doubles = s * _polynomial(_LOG2, s * s) + (twos - is_small)
    return result


def _polynomial(coefficients: Sequence[float], x: Doubles) -> Doubles:
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= x
        result += coefficient
    return result
