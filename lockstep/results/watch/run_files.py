"""The files of a run, which another process writes: new lines are followed, and reduced to the figures of the page.

The figures of steps are columns, and curves are as short as a screen is wide. The ledger gives the workers of a run,
their shares of the last steps, and events."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from lockstep.common.errors import LockstepError
from lockstep.common.files.reading import known_lines
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.records.ledger import (
    LedgerShare,
    Line,
    RunBegun,
    StepDone,
    UnusedCause,
    UnusedWork,
    WeightsAt,
    WorkerConvicted,
    WorkerIn,
    WorkerOut,
)
from lockstep.ps.records.metrics import METRICS, Record
from lockstep.ps.records.receipt import Receipt
from lockstep.ps.records.run_folder import JOB, LEDGER, RECEIPT, RESULT, RunResult, read_receipt, read_result
from lockstep.results.plots.curves import Floats, RunCurves, StepColumns
from lockstep.runs.run_dir import (
    has_begun,
    recorded,
)

#: The folder of a run of which only the server is known: it cannot exist.
NOWHERE = Path(os.devnull, "run")

#: Most bytes that are read at once, so that a long file never fills memory.
CHUNK_BYTES = 2**24

#: Bytes before the place that was reached by which a file that was cut and has grown again is recognised.
MARK_BYTES = 256


class NewLines(msgspec.Struct, frozen=True):
    """The lines that came since the last call."""

    #: Whole lines, each with its end; empty if none is complete.
    data: bytes
    #: Whether this is the beginning of another file, or of one that was cut: what came before is void.
    is_restarted: bool = False
    #: Whether there is more to read at once.
    has_more: bool = False


@dataclass
class LineFollower:
    """Reads one file from its beginning on, as far as it has come."""

    path: Path
    most_bytes: int = CHUNK_BYTES
    #: Bytes that were returned, and the last of them.
    _offset: int = 0
    _mark: bytes = b""

    def read(self) -> NewLines:
        """Return the lines that are new; none if the file is missing, or cannot be read for now."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return self._restart(b"") if self._offset else NewLines(b"")
        try:
            return self._read(descriptor)
        except OSError:
            return NewLines(b"")
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> NewLines:
        size = os.fstat(descriptor).st_size
        is_same = size >= self._offset and self._has_mark(descriptor)
        if is_same and size == self._offset:
            return NewLines(b"")
        start = self._offset if is_same else 0
        data = os.pread(descriptor, self.most_bytes, start)
        # A last line without its end is still being written; one longer than a chunk is not a line of ours.
        end = data.rfind(b"\n") + 1 or (len(data) if len(data) == self.most_bytes else 0)
        lines = data[:end]
        if not is_same:
            return self._restart(lines, has_more=size > end)
        self._advance(lines)
        return NewLines(lines, has_more=bool(lines) and size > self._offset and len(data) == self.most_bytes)

    def _has_mark(self, descriptor: int) -> bool:
        return os.pread(descriptor, len(self._mark), self._offset - len(self._mark)) == self._mark

    def _restart(self, lines: bytes, *, has_more: bool = False) -> NewLines:
        self._offset, self._mark = 0, b""
        self._advance(lines)
        return NewLines(lines, is_restarted=True, has_more=has_more and bool(lines))

    def _advance(self, lines: bytes) -> None:
        self._offset += len(lines)
        self._mark = (self._mark + lines[-MARK_BYTES:])[-MARK_BYTES:]


#: The curves over the steps; `throughput` is samples per second.
CURVES = ("loss", "accuracy", "r2", "lr", "throughput")


def curves(columns: StepColumns, first: float, last: float, points: int) -> dict[str, list[float | None]]:
    """Return the curves of steps `first` to `last` in at most `points` places.

    Each place stands for as many steps; `step` has the middle one. For each curve there is the mean over these, and
    under the same name with `_min` and `_max` the range, which a mean would hide. Values that are not finite, as
    those that a run does not have, are None.
    """
    steps = columns["step"]
    low, high = int(np.searchsorted(steps, first)), int(np.searchsorted(steps, last, side="right"))
    count = high - low
    if count <= 0 or points <= 0:
        return {"step": []}
    width = -(-count // points)
    edges = np.arange(0, count, width)
    sizes = np.diff(np.append(edges, count))
    middles = np.minimum(edges + (sizes - 1) // 2, count - 1)
    found: dict[str, list[float | None]] = {"step": _json_numbers(steps[low:high][middles])}
    for name in CURVES:
        values = _values(columns, name)[low:high]
        if not np.isfinite(values).any():
            continue
        with np.errstate(all="ignore"):
            found[name] = _json_numbers(np.add.reduceat(values, edges) / sizes)
            found[f"{name}_min"] = _json_numbers(np.fmin.reduceat(values, edges))
            found[f"{name}_max"] = _json_numbers(np.fmax.reduceat(values, edges))
    return found


def _values(columns: StepColumns, name: str) -> Floats:
    if name != "throughput":
        return columns[name]
    seconds = columns["round_s"]
    with np.errstate(all="ignore"):
        return np.asarray(np.where(seconds > 0, columns["samples"] / seconds, np.nan))


def _json_numbers(values: Floats) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


#: Steps whose leases are kept for the timeline, and events that are kept.
TIMELINE_STEPS, MOST_EVENTS = 64, 2000

#: Steps by which the shares and speeds of workers are judged.
RECENT_STEPS = 64


class EventKind(StrEnum):
    """The kinds of events of a run, as they are marked on its curves."""

    BEGUN = "begun"
    RESUMED = "resumed"
    JOINED = "joined"
    LEFT = "left"
    REASSIGNED = "reassigned"
    CHECKPOINT = "checkpoint"


class RunEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened before a step was complete."""

    kind: EventKind
    step: int
    text: str


class StepLeases(msgspec.Struct, frozen=True, kw_only=True):
    """The shares of one step. Times are seconds from its begin."""

    step: int
    used: list[LedgerShare]
    unused: list[LedgerShare]
    #: For each that was used, which process of its team computed it; empty if that is unknown.
    processes: list[int]
    #: As the metrics have them; 0 until they are read.
    round_s: float = 0.0
    update_s: float = 0.0


@dataclass
class LedgerFigures:
    """The figures in `ledger.jsonl` of a run so far."""

    #: The workers that took part since the run was last begun or resumed, by rank.
    workers: dict[int, WorkerIn] = field(default_factory=dict)
    #: By rank, why those of them left that did.
    gone: dict[int, str] = field(default_factory=dict)
    #: By rank, their micro-batches that were accepted, and those that were computed in vain.
    accepted: Counter[int] = field(default_factory=Counter)
    unused: Counter[int] = field(default_factory=Counter)
    timeline: deque[StepLeases] = field(default_factory=lambda: deque(maxlen=TIMELINE_STEPS))
    events: deque[RunEvent] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    #: Leases whose results were not used, since another worker was faster; those that went to others, since their
    #: worker was late or gone; those that were audited; and how often the run was resumed.
    copied: int = 0
    reassigned: int = 0
    audited: int = 0
    restarts: int = 0
    _step: int = 0
    _unused: list[UnusedWork] = field(default_factory=list)

    @property
    def is_alone(self) -> bool:
        """True if the process of the command computes by itself: work was done, and no worker had joined."""
        return self.accepted.total() > 0 and not self.workers

    def add(self, entries: Iterable[Line]) -> None:
        """Add new entries."""
        for entry in entries:
            self._add(entry)

    def _add(self, entry: Line) -> None:
        match entry:
            case StepDone():
                self._add_step(entry)
            case UnusedWork():
                self._add_unused(entry)
            case WorkerIn(rank=rank):
                self.workers[rank] = entry
                self._note(EventKind.JOINED, f"{entry.named()} joined")
            case WorkerOut(rank=rank):
                self.gone[rank] = entry.why
                self._note(EventKind.LEFT, f"{self._named(rank)} left: {entry.why}")
            case RunBegun():
                self._begin(entry)
            case WorkerConvicted():
                went = f"the run went back to step {entry.back_to:,}" if entry.back_to else "the run began again"
                self._note(EventKind.LEFT, f"{entry.why()}: it was evicted, and {went}")
            case WeightsAt():
                self._note(EventKind.CHECKPOINT, f"checkpoint after {entry.step:,} steps", entry.step)
            case _:
                pass

    def _begin(self, entry: RunBegun) -> None:
        for by_rank in (self.workers, self.gone, self.accepted, self.unused):
            by_rank.clear()
        is_first = not self.events
        self._step = entry.step
        if is_first:
            self._note(EventKind.BEGUN, "the run began")
            return
        self.restarts += 1
        lost = f"; {entry.lost_steps:,} steps are made again" if entry.lost_steps else ""
        self._note(EventKind.RESUMED, f"resumed after {entry.step:,} steps{lost}")

    def _add_step(self, entry: StepDone) -> None:
        for share in entry.shares:
            self.accepted[share.rank] += share.hi - share.lo
        unused, self._unused = [_share(one) for one in self._unused if one.step == entry.step], []
        self.timeline.append(StepLeases(step=entry.step, used=entry.shares, unused=unused, processes=entry.processes))
        self._step = entry.step + 1

    def _add_unused(self, entry: UnusedWork) -> None:
        self.unused[entry.rank] += entry.hi - entry.lo
        if entry.work in ("train", "audit"):
            self._unused.append(entry)
        if entry.work == "audit":
            self.audited += 1
        elif entry.cause is UnusedCause.FASTER:
            # Common, and no event: the timeline shows it.
            self.copied += 1
        else:
            self.reassigned += 1
            text = f"worker {entry.rank}: micro-batches {entry.lo} to {entry.hi - 1} go to others: {entry.why}"
            self._note(EventKind.REASSIGNED, text, entry.step)

    def _named(self, rank: int) -> str:
        return self.workers[rank].named() if rank in self.workers else f"worker {rank}"

    def _note(self, kind: EventKind, text: str, step: int | None = None) -> None:
        self.events.append(RunEvent(kind=kind, step=self._step if step is None else step, text=text))


def _share(one: UnusedWork) -> LedgerShare:
    return LedgerShare(one.lo, one.hi, one.rank, one.began_s, one.ended_s)


T = TypeVar("T")


@dataclass
class WatchedFiles:
    """The files in a run's folder, with all that was read of them so far."""

    folder: Path
    #: Whether there is a folder with the run's job.
    has_folder: bool = False
    job: Job | None = None
    launch: RunOptions | None = None
    result: RunResult | None = None
    receipt: Receipt | None = None
    metrics: RunCurves = field(default_factory=RunCurves)
    ledger: LedgerFigures = field(default_factory=LedgerFigures)
    _metrics_file: LineFollower = field(init=False)
    _ledger_file: LineFollower = field(init=False)
    #: Of each small file, what tells whether it is the one that was read.
    _stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._metrics_file = LineFollower(self.folder / METRICS)
        self._ledger_file = LineFollower(self.folder / LEDGER, most_bytes=2**22)

    def read_lines(self) -> bool:
        """Read a part of the new lines; return whether there is more."""
        # Lines that are damaged, or of another version, cost no other.
        records, entries = self._metrics_file.read(), self._ledger_file.read()
        self.metrics = RunCurves() if records.is_restarted else self.metrics
        self.metrics.add(known_lines(records.data, Record))
        self.ledger = LedgerFigures() if entries.is_restarted else self.ledger
        self.ledger.add(known_lines(entries.data, Line))
        return records.has_more or entries.has_more

    def read_small(self) -> None:
        """Read the job, the receipt and the result if they are new."""
        self.has_folder = (self.folder / JOB).is_file()
        new = [name for name in (JOB, RECEIPT, RESULT) if self._is_new(name)]
        if JOB in new:
            begun = try_read(lambda folder: recorded(folder) if has_begun(folder) else None, self.folder)
            self.job, self.launch = begun or (None, None)
        if RECEIPT in new:
            self.receipt = try_read(read_receipt, self.folder)
        if RESULT in new:
            self.result = try_read(read_result, self.folder)

    def _is_new(self, name: str) -> bool:
        before, self._stamps[name] = self._stamps.get(name, ()), ()
        with suppress(OSError):
            found = os.stat(self.folder / name)
            self._stamps[name] = found.st_ino, found.st_mtime_ns, found.st_size
        return self._stamps[name] != before


def written_at(folder: Path) -> float:
    """Return when a run last wrote something, in seconds since 1970; 0 if it has not."""
    times = [0.0]
    for name in (METRICS, RESULT, JOB):
        with suppress(OSError):
            times.append(os.stat(folder / name).st_mtime)
    return max(times)


def try_read(read: Callable[[Path], T], folder: Path) -> T | None:
    """Return what there is in a folder: it may be missing, or of another version."""
    with suppress(OSError, LockstepError):
        return read(folder)
    return None
