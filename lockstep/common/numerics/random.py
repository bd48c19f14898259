"""Counter-based random numbers (rule R2): what is drawn depends on the key alone, never on earlier draws.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a key and a counter into
random bits. Seed and purpose are the key; the rest is the counter, so that no generator's state is carried anywhere.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What random numbers are for: two purposes never share a stream. The values are a part of every run's bits."""

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

    def at(self, seed: int, *, at: int, micro_batch: int) -> int:
        """Return what `generator(seed, purpose, at=at, micro_batch=micro_batch).integers(2**63)` does."""
        place = self._state["state"]
        place["counter"][:] = 0, 0, micro_batch, at
        place["key"][:] = seed, self._purpose
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
    """What draws from a generator that is replaced from time to time: a computation to be repeated keeps the source."""

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
