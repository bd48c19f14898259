"""The files in the shared memory of a run, and the records in them, which processes of a team and the server read.

The server makes one file with both slots of weights, which workers map for reading only, until a team is to make
several steps: then its processes write weights and the optimizer's slots, slice by slice, and each slice under its
lock. A team's file of marks has a part for each process, which it alone writes, and one for the leader's orders. Data
is written before its mark, and read after it. Data that a lock protects is next to the weights to which the locks
belong (`UpdateMarks`): if a process stops with a lock, the run leaves all of that.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.slices import Slice, slices_for
from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import Slots
from lockstep.common.job.tally import Tally
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.protocol.messages import Work
from lockstep.common.transport.shared_memory.segment import Segment, Shape

#: The file of the weights, of which those after step t are in slot t % 2.
WEIGHTS = "weights"

#: The file of the weights as they are, if those that workers compute with are rounded; otherwise there is no such file.
EXACT_WEIGHTS = "exact-weights"

#: The file of the optimizer's slots, all of the first set and then all of the second.
STATE = "state"

#: The file of a team's marks, in the team's own folder (`TeamMarks`).
MARKS = "marks"

#: Vectors of sums of each process: those of the parts that it is given, so many at most, and of as many parts of
#: others; the last one is for the sums over all of an order, which it can always compute alone.
OWN_PARTS, ROWS = 4, 9
WHOLE_ROW = ROWS - 1

#: Steps whose entries are kept. A team waits when it is so many steps ahead of what the server has read.
ENTRIES = 32

#: Orders that are kept: a process that is further behind does not need them any more.
ORDERS = 8

#: The kinds of orders, by their number there.
WORKS: tuple[Work, ...] = get_args(Work)

#: Slices into which a team cuts a vector at most, and the values below which one is not worth it.
MOST_SLICES, LEAST_SLICE = 64, 16_384

#: The state that a process shows, a cache line each: the order that it has seen last, the one that it cannot carry out,
#: whether it sleeps until another process wakes it, the session that it is ready for, and when it was last seen to run:
#: when it looked, or its kernels did something. Then the seconds that a micro-batch takes it, which part of a core it
#: needs meanwhile, both 0 if that is not known, and for which part of its time of computing it had no core.
PROCESS = np.dtype(
    [(name, "<i8") for name in ("at", "failed", "sleeps", "ready")]
    + [(name, "<f8") for name in ("seen_s", "seconds", "load", "waits")]
)

#: The columns that a process shows of each of its vectors of sums: its order (negative while it is being written) and
#: its node; and, as float64, the figures of `Result`, with the times of this host's clock at which it was
#: begun and ended, in seconds, and from `METRICS` on the sums of metrics.
ORDER, LO, HI = range(3)
LOSS_SUM, COUNT, COMPUTE_S, BEGAN_S, ENDED_S, IGNORED, WEIGHT, METRICS = range(8)


def weights_shape(size: int) -> Shape:
    """Return what the file of weights holds, of `size` values each."""
    return Shape(vectors=2, size=size)


def update_file(rank: int) -> str:
    """Return the name of the file that says how far the team of that rank is with updates (`UpdateMarks`)."""
    return f"update-{rank}"


def lock_file(slice_: int) -> str:
    """Return the name of the file that is the lock of a slice of updates: its holder may write that slice."""
    return f"lock-{slice_}"


def process_file(process: int) -> str:
    """Return the name of the file of a team's process, in the team's own folder: its vectors of sums and of results."""
    return f"process-{process}"


def process_shape(size: int) -> Shape:
    """Return what such a file holds: a vector for each of its rows, and one for the slices that it adds up."""
    return Shape(vectors=ROWS + 1, size=size)


def state_shape(names: Sequence[str], parameter_size: int) -> Shape:
    """Return what the file of the optimizer's slots holds."""
    return Shape(vectors=2 * len(names), size=parameter_size)


def state_sets(names: Sequence[str], vectors: Sequence[Vector]) -> tuple[Slots, Slots]:
    """Return both sets of the optimizer's slots, of those names, from the vectors of their file."""
    first, second = vectors[: len(names)], vectors[len(names) :]
    return dict(zip(names, first, strict=True)), dict(zip(names, second, strict=True))


def weight_in_memory(tally: Tally) -> float:
    """Return the weight of a tally as it is written there: NaN if it has none."""
    return math.nan if tally.weight is None else tally.weight


def weight_of(number: float) -> float | None:
    """Return the weight that was written."""
    return None if math.isnan(number) else number


def write_tally(entry: NDArray[np.void], tally: Tally) -> None:
    """Write a tally into an entry of `TeamShape.entry`."""
    entry["loss_sum"], entry["count"] = tally.loss_sum, tally.count
    entry["ignored"], entry["weight"] = tally.ignored, weight_in_memory(tally)
    entry["metrics"] = tally.metrics or 0.0


def tally_in(entry: np.void) -> Tally:
    """Return the tally in an entry."""
    count, ignored = (int(entry[name]) for name in ("count", "ignored"))
    metrics = tuple(entry["metrics"].tolist())
    return Tally(float(entry["loss_sum"]), count, ignored, weight_of(float(entry["weight"])), metrics)


def keep_order() -> None:
    """Keep what comes before in memory before what comes after, as other processors see it.

    Nothing passes a lock's release downwards, nor the next acquisition upwards, nor these two each other.
    """
    _acquire()
    _release()
    _acquire()
    _release()


_BARRIER = threading.Lock()
_acquire, _release = _BARRIER.acquire, _BARRIER.release


class TeamShape(msgspec.Struct, frozen=True, kw_only=True):
    """The values that decide the sizes of a team's memory: the same at the server and at each process."""

    processes: int
    #: Of a step of the job.
    micro_batches: int
    #: Values of a vector.
    size: int
    #: Whether the job clips gradients by their norm.
    clips: bool
    #: Sums of metrics in a tally.
    metrics: int = 0
    #: Most processes that make slices at a time: more than there are cores would only wait for one another.
    makers: int = MOST_SLICES

    @property
    def slices(self) -> list[Slice]:
        """The slices into which they cut a vector, to work on one each."""
        most = -(-self.size // BLOCK), self.size // LEAST_SLICE, MOST_SLICES
        return slices_for(self.size, max(1, min(self.processes, self.makers, *most)))

    @property
    def parts(self) -> int:
        """Most nodes that the sums of an order are put together from."""
        return min(self.micro_batches, self.processes * ROWS)

    @property
    def plan(self) -> np.dtype[np.void]:
        """The division of a step: rows of (lo, hi, process), and the processes that make slices."""
        parts = ("parts", "<i4", (self.processes * OWN_PARTS, 3))
        return np.dtype([("given", "<i8"), ("active", "<i8"), parts, ("owners", "<i4", (self.processes,))])

    @property
    def order(self) -> np.dtype[np.void]:
        """One order of the leader's: a lease, or the first step of a multi-step lease."""
        return np.dtype(
            [
                ("order", "<i8"),
                # An index of `WORKS`.
                ("work", "<i8"),
                ("step", "<i8"),
                ("lo", "<i8"),
                ("hi", "<i8"),
                # As in `MultiStepLease`, 0 in an order that is a lease; but for `memory`, which both have.
                ("number", "<i8"),
                ("last", "<i8"),
                ("reads", "<i8"),
                ("memory", "<i8"),
                ("plan", self.plan),
            ]
        )

    @property
    def entry(self) -> np.dtype[np.void]:
        """The record of a step that a team has made by itself, for the server, and the division of the next step."""
        return np.dtype(
            [
                ("step", "<i8"),
                ("loss_sum", "<f8"),
                ("count", "<i8"),
                ("ignored", "<i8"),
                ("weight", "<f8"),
                ("metrics", "<f8", (self.metrics,)),
                # When all sums were there, by the host's clock, and the seconds since those of the step before were.
                ("summed_s", "<f8"),
                ("round_s", "<f8"),
                # Of the update's first slice.
                ("update_s", "<f8"),
                # Of the weights after the step before; by the holder of the last slice's lock.
                ("checksum", "<u8"),
                # Rows of (lo, hi, process), and for each the figures from `COMPUTE_S` to `ENDED_S`, where times are
                # seconds since all sums of the step before were there.
                ("used", "<i8"),
                ("parts", "<i4", (self.parts, 3)),
                ("times", "<f8", (self.parts, 3)),
                ("losses", "<f4", (self.micro_batches,)),
                ("next", self.plan),
            ]
        )

    def of_update(self) -> "Fields":
        """Return what the file of the marks of updates holds, in order."""
        integers = np.dtype("<i8")
        return {"head": (integers, (8,)), "made": (integers, (MOST_SLICES,)), "entries": (self.entry, (ENTRIES,))}

    def of_team(self) -> "Fields":
        """Return what the file of a team's marks holds, in order."""
        count, slices = self.processes, len(self.slices)
        integers, floats = np.dtype("<i8"), np.dtype("<f8")
        return {
            "marks": (integers, (8,)),
            "processes": (PROCESS, (count,)),
            "nodes": (integers, (count, ROWS, 4)),
            "figures": (floats, (count, ROWS, METRICS + self.metrics)),
            "losses": (np.dtype("<f4"), (count, self.micro_batches)),
            "added": (integers, (count, slices)),
            "squared": (integers, (count, MOST_SLICES)),
            "squares": (floats, (count, -(-self.size // BLOCK) if self.clips else 0)),
            "orders": (self.order, (ORDERS,)),
        }


#: By name, the dtype and shape of each array in a file.
Fields = Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]]


def file_of(fields: Fields) -> Shape:
    """Return the shape of a file with these arrays, in float32."""
    return Shape(vectors=1, size=sum(_occupied(dtype, shape) for dtype, shape in fields.values()) // 4)


def _arrays(segment: Segment, fields: Fields) -> dict[str, NDArray[Any]]:
    """Return the arrays in a file of that shape."""
    words, start, found = segment.vectors[0].view(np.uint8), 0, {}
    for name, (dtype, shape) in fields.items():
        size = dtype.itemsize * int(np.prod(shape))
        found[name] = words[start : start + size].view(dtype).reshape(shape)
        start += _occupied(dtype, shape)
    return found


def _occupied(dtype: np.dtype[np.generic], shape: Sequence[int]) -> int:
    """Return the bytes of an array, up to the next cache line."""
    return -(-dtype.itemsize * int(np.prod(shape)) // 64) * 64


class Published(msgspec.Struct, frozen=True):
    """Rows that one process at a time writes, and others read while they are whole: that of a version at its remainder.

    The version of a row is written last, and is none while the rest is written.
    """

    rows: NDArray[np.void]
    #: The field with the version.
    version: str
    keep_order: Callable[[], None]

    @contextmanager
    def write(self, version: int) -> Iterator[NDArray[np.void]]:
        """Lend the row of a version, in which all else is written meanwhile."""
        row: NDArray[np.void] = self.rows[version % len(self.rows)]
        row[self.version] = -1
        self.keep_order()
        yield row
        self.keep_order()
        row[self.version] = version
        self.keep_order()

    def read(self, version: int, name: str | None = None) -> NDArray[np.void] | None:
        """Return a copy of the row of a version, or of one field of it; None unless it was whole all the time."""
        row: NDArray[np.void] = self.rows[version % len(self.rows)]
        was_whole = int(row[self.version]) == version
        self.keep_order()
        copy: NDArray[np.void] = (row if name is None else row[name]).copy()
        self.keep_order()
        return copy if was_whole and int(row[self.version]) == version else None


class TeamMarks(msgspec.Struct, frozen=True):
    """A team's file of marks. Each has one writer, which its comment names; every process reads all of it."""

    #: int64: the newest order. Written by the leader.
    marks: NDArray[np.int64]
    #: Of `PROCESS`, shape (processes,): each process writes its own.
    processes: NDArray[np.void]
    #: Of each vector of sums, from `ORDER` and from `LOSS_SUM` on, of shapes (processes, ROWS, 4) and
    #: (processes, ROWS, METRICS + sums of metrics); and the losses of micro-batches, (processes, micro-batches): the
    #: same.
    nodes: NDArray[np.int64]
    figures: NDArray[np.float64]
    losses: NDArray[np.float32]
    #: The order of which a process has added up a slice, (processes, slices): the same.
    added: NDArray[np.int64]
    #: The order of which it has added up the squares of a slice, and these, block by block: the same.
    squared: NDArray[np.int64]
    squares: NDArray[np.float64]
    #: The order n is at n % ORDERS; by the leader.
    orders: NDArray[np.void]

    @classmethod
    def of(cls, segment: Segment, shape: TeamShape) -> "TeamMarks":
        """Return the marks in a file of that shape."""
        return cls(**_arrays(segment, shape.of_team()))

    @property
    def newest(self) -> int:
        """The newest order."""
        return int(self.marks[0])


class UpdateMarks(msgspec.Struct, frozen=True):
    """The progress of a team's updates, next to their weights and to the locks of slices.

    It is written by the server while no lease of several steps is made. Otherwise the holder of a slice's lock writes
    how many of its updates are made; before that, the holder of the first lock writes the entry of the step, and the
    holder of the last one the checksum in it; and the server `read`.
    """

    #: int64: the number of the multi-step lease whose updates may be made, 0 for none; steps of which the server has
    #: read the entries; and the slices into which updates are cut.
    head: NDArray[np.int64]
    #: int64, for each slice: steps of the run whose update was made.
    made: NDArray[np.int64]
    #: Of `TeamShape.entry`: that of a step at step % ENTRIES.
    entries: NDArray[np.void]
    #: Called between writes, or reads, in an order that other processes rely on.
    keep_order: Callable[[], None] = keep_order

    @classmethod
    def of(cls, segment: Segment, shape: TeamShape) -> "UpdateMarks":
        """Return the marks in a file of that shape."""
        arrays: dict[str, Any] = _arrays(segment, shape.of_update())
        return cls(**arrays)

    @property
    def published(self) -> Published:
        """The entries of steps, all of each but its checksum."""
        return Published(self.entries, "step", self.keep_order)

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
        least: int = min(self.made[: self.slices].tolist())
        self.keep_order()
        return least

    def begin(self, number: int, first: int, slices: int) -> None:
        """Let updates of a lease from step `first` on be made."""
        self.made[:], self.head[1], self.head[2] = first, first, slices
        self.keep_order()
        self.head[0] = number

    def end(self) -> None:
        """Let none be made any more, while all locks are held."""
        self.head[0] = 0
        self.keep_order()

    def show_read(self, steps: int) -> None:
        """Show that the entries of so many steps of the run were read."""
        self.head[1] = steps
