"""The samples of a micro-batch or of a chunk of an evaluation (rule R3): pure arithmetic, no state."""

import numpy as np
from numpy.typing import NDArray

from lockstep.common.numerics.random import Purpose, generator

#: Samples of one chunk of an evaluation at most. Not part of the job: it decides only the last bits of the loss.
EVALUATION_SAMPLES = 500


class Sampler:
    """Cuts each epoch's permutation of the data into batches and each batch into micro-batches.

    An epoch uses each sample exactly once; its last batch may be short, and micro-batches may be empty then.
    Raises ValueError if a size or count is below 1.
    """

    def __init__(self, size: int, global_batch: int, micro_batches: int, seed: int) -> None:
        for name, value in (("size", size), ("global_batch", global_batch), ("micro_batches", micro_batches)):
            if value < 1:
                raise ValueError(f"{name} is {value!r}: expected at least 1")
        self.size = size
        self.global_batch = global_batch
        self.micro_batches = micro_batches
        self.seed = seed
        self.steps_per_epoch = -(-size // global_batch)
        #: The epoch whose permutation is cached; -1 before the first.
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, that `step` belongs to."""
        return step // self.steps_per_epoch

    def is_at_hand(self, step: int) -> bool:
        """Return whether the order of the epoch that `step` belongs to is drawn already."""
        return self.epoch_of(step) == self._epoch

    def batch_size(self, step: int) -> int:
        """Return the number of samples of `step`: the global batch, or the rest at the end of an epoch."""
        return min(self.global_batch, self.size - step % self.steps_per_epoch * self.global_batch)

    def indices(self, step: int, first: int, stop: int | None = None) -> NDArray[np.int64]:
        """Return the samples of the micro-batches `[first, stop)`, by default of one, in their order: (k,).

        A read-only view, perhaps empty. Raises ValueError for a negative step or a micro-batch that does not exist.
        """
        stop = first + 1 if stop is None else stop
        if step < 0 or not 0 <= first < stop <= self.micro_batches:
            wrong = first if first < 0 else stop - 1
            raise ValueError(
                f"step {step!r}, micro-batch {wrong!r}: expected a step from 0 and a micro-batch in "
                f"[0, {self.micro_batches})"
            )
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.global_batch
        count = min(self.global_batch, self.size - start)
        low = start + first * count // self.micro_batches
        high = start + stop * count // self.micro_batches
        return self._order(epoch)[low:high]

    def sizes(self, step: int, first: int, stop: int) -> set[int]:
        """Return how many samples the micro-batches `[first, stop)` of a step have: one number if all are equal."""
        count, parts = self.batch_size(step), self.micro_batches
        if count % parts == 0:
            return {count // parts}
        return {(each + 1) * count // parts - each * count // parts for each in range(first, stop)}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            # Two orders at once would be twice the memory, of sets of millions.
            self._permutation = np.empty(0, dtype=np.int64)
            self._permutation = generator(self.seed, Purpose.SHUFFLE, at=epoch).permutation(self.size)
            self._permutation.flags.writeable = False
            self._epoch = epoch
        return self._permutation


def evaluation_chunks(samples: int) -> int:
    """Return into how many chunks an evaluation of so many samples is cut; they are leased like micro-batches."""
    return max(1, -(-samples // EVALUATION_SAMPLES))


def evaluation_rows(chunk: int, samples: int) -> slice:
    chunks = evaluation_chunks(samples)
    return slice(chunk * samples // chunks, (chunk + 1) * samples // chunks)
