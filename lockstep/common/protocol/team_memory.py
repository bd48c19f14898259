"""What the processes of a team show one another in memory, and what a team shows the server; nothing of who waits.

A team's file of marks has a part for each process, which it alone writes, and a part for orders and entries, which one
process at a time writes. What a mark stands for is written before it, and read after it. Whoever may write weights is
a matter of the memory that they are in: its `UpdateMarks` and the locks beside them.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.slices import Slice, slices_for
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.transport.shared_memory.segment import Segment, Shape

#: Vectors of sums of each process: for the parts that it is given, for a part of somebody who is late, and for all.
OWN_PARTS = 4
HELP_ROW, WHOLE_ROW = OWN_PARTS, OWN_PARTS + 1
ROWS = OWN_PARTS + 2

#: Steps whose entries are kept. A team waits when it is so many steps ahead of what the server has read.
ENTRIES = 32

#: Orders that are kept: who is so far behind does not need them any more.
ORDERS = 8

#: Slices into which a team cuts a vector at most, and the values below which one is not worth it.
MOST_SLICES, LEAST_SLICE = 64, 16_384

#: What a process shows of itself, a cache line each: the order that it has seen last, the one that it cannot carry out,
#: whether it sleeps until somebody wakes it, its number in the system; and the session that it is ready for.
PROCESS = np.dtype(
    [("at", "<i8"), ("failed", "<i8"), ("sleeps", "<i8"), ("pid", "<i8"), ("ready", "<i8"), ("rest", "<i8", (3,))]
)

#: Sums that a process has in one of its vectors: of which order (0 while they are being written) and node, and what
#: belongs to them, as in `Result`. The times are seconds since all sums of the step before were there.
ROW = np.dtype(
    [
        ("order", "<i8"),
        ("lo", "<i8"),
        ("hi", "<i8"),
        ("loss_sum", "<f8"),
        ("correct", "<i8"),
        ("count", "<i8"),
        ("compute_s", "<f8"),
        ("began_s", "<f8"),
        ("ended_s", "<f8"),
    ]
)


def team_slices(size: int, processes: int) -> list[Slice]:
    """Return the slices into which so many processes cut a vector of `size` values, to work on one each."""
    blocks = -(-size // BLOCK)
    return slices_for(size, max(1, min(processes, MOST_SLICES, blocks, size // LEAST_SLICE)))


def keep_order() -> None:
    """Keep what comes before in memory before what comes after, as other processors see it.

    Nothing passes a lock's release downwards, nor the next acquisition upwards, nor these two each other.
    """
    for _ in range(2):
        with _BARRIER:
            pass


_BARRIER = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class TeamShape:
    """What the sizes of a team's memory follow from: the same at the server and at each process."""

    processes: int
    #: Of a step of the job.
    micro_batches: int
    #: Values of a vector.
    size: int
    #: Whether the job clips gradients by their norm.
    clips: bool

    @property
    def slices(self) -> list[Slice]:
        """The slices of the vector that are added up by different processes."""
        return team_slices(self.size, self.processes)

    @property
    def parts(self) -> int:
        """Most nodes that the sums of an order are put together from."""
        return min(self.micro_batches, self.processes * ROWS)

    @property
    def order(self) -> np.dtype[np.void]:
        """One order."""
        return np.dtype(
            [
                ("order", "<i8"),
                # Of `WORKS`, or that a step of a multi-step lease is made, with that lease's number and last step.
                ("work", "<i8"),
                ("step", "<i8"),
                ("lo", "<i8"),
                ("hi", "<i8"),
                ("number", "<i8"),
                ("last", "<i8"),
                # As in `MultiStepLease`: of this step.
                ("count", "<i8"),
                ("reads", "<i8"),
                ("memory", "<i8"),
                # Rows of (lo, hi, process), and for each slice the process that makes it.
                ("given", "<i8"),
                ("parts", "<i4", (self.processes * OWN_PARTS, 3)),
                ("owners", "<i4", (MOST_SLICES,)),
            ]
        )

    @property
    def entry(self) -> np.dtype[np.void]:
        """What the server gets to know of a step that a team has made by itself."""
        return np.dtype(
            [
                ("step", "<i8"),
                ("loss_sum", "<f8"),
                ("correct", "<i8"),
                ("count", "<i8"),
                # Until all sums were there since those of the step before were, and of the update's first slice.
                ("round_s", "<f8"),
                ("update_s", "<f8"),
                # Of the weights after the step before.
                ("checksum", "<u8"),
                # Rows of (lo, hi, process), and for each the seconds until it began, until it ended, and of computing.
                ("used", "<i8"),
                ("parts", "<i4", (self.parts, 3)),
                ("times", "<f8", (self.parts, 3)),
                ("losses", "<f4", (self.micro_batches,)),
            ]
        )

    def fields(self) -> dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]:
        """Return what the file of marks holds, in order: name -> (dtype, shape)."""
        count, slices = self.processes, len(self.slices)
        integers, floats = np.dtype("<i8"), np.dtype("<f8")
        return {
            "marks": (integers, (8,)),
            "seconds": (floats, (count,)),
            "processes": (PROCESS, (count,)),
            "rows": (ROW, (count, ROWS)),
            "losses": (np.dtype("<f4"), (count, self.micro_batches)),
            "added": (integers, (count, slices)),
            "squared": (integers, (count, MOST_SLICES)),
            "squares": (floats, (count, -(-self.size // BLOCK) if self.clips else 0)),
            "orders": (self.order, (ORDERS,)),
            "entries": (self.entry, (ENTRIES,)),
        }

    def file(self) -> Shape:
        """Return the shape of the file of marks, in float32."""
        return Shape(vectors=1, size=sum(_occupied(dtype, shape) for dtype, shape in self.fields().values()) // 4)


def _occupied(dtype: np.dtype[np.generic], shape: Sequence[int]) -> int:
    """Return the bytes of an array, up to the next cache line."""
    return -(-dtype.itemsize * int(np.prod(shape)) // 64) * 64


@dataclass(frozen=True)
class TeamMarks:
    """A team's file of marks. Who writes what stands at each; everybody reads all of it."""

    #: int64: the newest order. Written by whoever gives the orders.
    marks: NDArray[np.int64]
    #: Seconds that a micro-batch takes each process, 0 if that is not known, shape (processes,); by the same.
    seconds: NDArray[np.float64]
    #: Of `PROCESS`, shape (processes,): each process writes its own.
    processes: NDArray[np.void]
    #: Of `ROW`, shape (processes, ROWS), and the losses of micro-batches, (processes, micro-batches): the same.
    rows: NDArray[np.void]
    losses: NDArray[np.float32]
    #: The order of which a process has added up a slice, (processes, slices): the same.
    added: NDArray[np.int64]
    #: The order of which it has added up the squares of a slice, and these, block by block: the same.
    squared: NDArray[np.int64]
    squares: NDArray[np.float64]
    #: The order n is at n % ORDERS, the entry of a step at step % ENTRIES: by whoever gives the orders.
    orders: NDArray[np.void]
    entries: NDArray[np.void]

    @classmethod
    def of(cls, segment: Segment, shape: TeamShape) -> "TeamMarks":
        """Return the marks in a file of that shape."""
        words, start, found = segment.vectors[0].view(np.uint8), 0, {}
        for name, (dtype, dimensions) in shape.fields().items():
            size = dtype.itemsize * int(np.prod(dimensions))
            found[name] = words[start : start + size].view(dtype).reshape(dimensions)
            start += _occupied(dtype, dimensions)
        return cls(**found)

    @property
    def slices(self) -> int:
        """Into how many slices the team cuts a vector."""
        return int(self.added.shape[1])

    @property
    def newest(self) -> int:
        """The newest order."""
        return int(self.marks[0])


@dataclass(frozen=True)
class UpdateMarks:
    """How far updates are in the memory of the weights beside which it is; the locks of slices are there as well.

    It is written by the server while no lease of several steps is made, and otherwise, but for `read`, slice by slice
    by whoever has that slice's lock.
    """

    #: int64: the number of the multi-step lease whose updates may be made, 0 for none; steps of which the server has
    #: read the entries; and the slices into which updates are cut.
    head: NDArray[np.int64]
    #: int64, for each slice: steps of the run whose update was made.
    made: NDArray[np.int64]

    @classmethod
    def of(cls, head: NDArray[np.uint8]) -> "UpdateMarks":
        """Return the marks in the head of a file."""
        words = head[: 8 * (8 + MOST_SLICES)].view(np.int64)
        return cls(words[:8], words[8:])

    @property
    def number(self) -> int:
        """The number of the multi-step lease whose updates may be made, 0 for none."""
        return int(self.head[0])

    @property
    def read(self) -> int:
        """Steps of the run of which the server has read the entries."""
        return int(self.head[1])

    @property
    def slices(self) -> int:
        """Into how many slices updates are cut."""
        return int(self.head[2])

    def least(self) -> int:
        """Return the steps of the run whose updates are whole."""
        least = int(self.made[: self.slices].min())
        keep_order()
        return least

    def begin(self, number: int, first: int, slices: int) -> None:
        """Let updates of a lease from step `first` on be made."""
        self.made[:], self.head[1], self.head[2] = first, first, slices
        keep_order()
        self.head[0] = number

    def end(self) -> None:
        """Let none be made any more, while all locks are held."""
        self.head[0] = 0
        keep_order()

    def show_read(self, steps: int) -> None:
        """Show that the entries of so many steps of the run were read."""
        self.head[1] = steps
