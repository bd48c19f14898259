"""The figures in `ledger.jsonl` of a run so far: its workers, their shares of the last steps, and events."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from lockstep.ps.records.ledger import (
    EpochDone,
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
    #: Epoch -> the last of its steps.
    epoch_ends: dict[int, int] = field(default_factory=dict)
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
            case EpochDone(epoch=epoch):
                self.epoch_ends[epoch] = entry.step - 1
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
