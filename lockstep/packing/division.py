"""Which samples of a source become the test set: drawn by the seed, within each thousand, so that nothing is stored."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.numerics.random import Purpose, generator

#: Samples among which a share is drawn at once. Files are often sorted: so each part of one gives its share.
GROUP = 1000

#: Arrays whose rows belong together.
Batch = tuple[NDArray[Any], ...]


@dataclass
class Division:
    """Divides samples, which come in order, into a training set and a test set of exactly that share, rounded down."""

    share: float
    seed: int
    _seen: int = 0
    _taken: int = 0

    def marks(self, count: int) -> NDArray[np.bool_]:
        """Return which of the next samples are for the test set; only the last call may be for a part of a group."""
        marked = np.zeros(count, np.bool_)
        for begin in range(0, count, GROUP):
            length = min(GROUP, count - begin)
            group, self._seen = self._seen // GROUP, self._seen + length
            wanted = int(self.share * self._seen) - self._taken
            self._taken += wanted
            order = generator(self.seed, Purpose.TEST_SPLIT, at=group).permutation(length)
            marked[begin + order[:wanted]] = True
        return marked


def in_groups(batches: Iterable[Batch], rows: int = GROUP) -> Iterator[Batch]:
    """Return the same rows in batches of a multiple of `rows`, but for the last."""
    held: Batch = ()
    for batch in batches:
        joined = tuple(np.concatenate(pair) for pair in zip(held, batch, strict=True)) if held else batch
        whole = len(joined[0]) // rows * rows
        if whole:
            yield tuple(array[:whole] for array in joined)
        held = tuple(array[whole:] for array in joined)
    if held and len(held[0]):
        yield held
