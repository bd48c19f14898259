"""Where workers show each other, and the server, how far they are while they make steps by themselves.

It is in the head of a worker's file of sums, which it alone writes. What a mark stands for is written before it, and
read after it.
"""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Steps whose entries are kept. A worker waits when it is so many steps ahead of what the server has read.
ENTRIES = 32

#: Most micro-batches of a half: an entry has the losses of all.
MOST_LOSSES = 64

#: What a worker knows of a step.
ENTRY = np.dtype(
    [
        # Of its half: as in `Result`.
        ("loss_sum", "<f8"),
        ("correct", "<i8"),
        ("count", "<i8"),
        ("compute_s", "<f8"),
        ("losses", "<f4", (MOST_LOSSES,)),
        # Seconds from when all sums of the step before were there: until it began to compute, until it had computed,
        # and until all sums of this step were there.
        ("began_s", "<f8"),
        ("ended_s", "<f8"),
        ("round_s", "<f8"),
        # Seconds of its slice of the update, and the checksum of the weights after it.
        ("update_s", "<f8"),
        ("checksum", "<u8"),
    ]
)

#: The marks: steps of which the worker has computed the sums, has made its slice of the update, and has all entries.
SUMMED, MADE, ENTERED = range(3)

#: The server's only mark: steps whose entries it has read.
READ = ENTERED

#: Bytes of the marks, on a cache line of their own.
_MARKS_BYTES = 64

_BARRIER = threading.Lock()


@dataclass(frozen=True)
class StepBoard:
    """The marks and entries in the head of a file."""

    #: int64, by `SUMMED`, `MADE` and `ENTERED`: each counts the run's steps.
    marks: NDArray[np.int64]
    #: Of `ENTRY`, shape (ENTRIES,): that of a step is at `step % ENTRIES`.
    entries: NDArray[np.void]

    @classmethod
    def of(cls, head: NDArray[np.uint8]) -> "StepBoard":
        """Return the board in the head of a file."""
        entries = head[_MARKS_BYTES : _MARKS_BYTES + ENTRIES * ENTRY.itemsize]
        return cls(head[:_MARKS_BYTES].view(np.int64), entries.view(ENTRY))

    def mark(self, what: int, steps: int) -> None:
        """Show that so many steps are done, and all that was written for them."""
        keep_order()
        self.marks[what] = steps

    def has(self, what: int, steps: int) -> bool:
        """Tell whether so many steps are done; then what was written for them can be read."""
        if self.marks[what] < steps:
            return False
        keep_order()
        return True

    def count(self, what: int) -> int:
        """Return how many steps are done."""
        steps = int(self.marks[what])
        keep_order()
        return steps


def keep_order() -> None:
    """Keep what comes before in memory before what comes after, as other processors see it.

    Nothing passes a lock's release downwards, nor the next acquisition upwards, nor these two each other.
    """
    for _ in range(2):
        with _BARRIER:
            pass
