"""Who is late, and who has been silent for too long: what of time the coordinator goes by. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.protocol.messages import Work
from ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable
from ps.coordinator.scheduling.lease_timeouts import LeaseTimeouts
from ps.coordinator.scheduling.stall_detector import StallDetector
from ps.run.timer_queue import TimerQueue

#: Seconds for which a worker that is late keeps its place, at least: its answer counts if it is the first.
FENCE_S = 3.0

#: So many times the seconds for which a late worker brought nothing it gets no work for being alive alone: it may do it
#: again, and the others, who wait for its pieces, would keep but a part of their speed.
CAUTION = 20.0


@dataclass
class StragglerMonitor:
    """The times of all workers of a run."""

    pace: LeaseTimeouts
    lookout: StallDetector = field(default_factory=StallDetector)
    #: When a worker that is late, and says nothing, loses its place, by rank.
    fences: TimerQueue[int] = field(default_factory=TimerQueue)
    #: Until when a worker that was late is to bring something before it gets work, by rank.
    _cautious: dict[int, float] = field(default_factory=dict)

    def look(self, now: float, pieces: LeaseTable) -> None:
        """Book that somebody looks; what passed while nobody did is held against no worker."""
        missed_s = self.lookout.look(now)
        if missed_s:
            pieces.put_off(missed_s)
            self.pace.put_off(missed_s)
            for rank, at in list(self.fences.times.items()):
                self.fences.set(rank, at + missed_s)

    def due(self, pieces: LeaseTable) -> float | None:
        """Return when to look again."""
        if not pieces.held and not self.fences.times:
            return None
        due = (self.lookout.due(), pieces.next_deadline(), self.fences.soonest())
        return min(at for at in due if at is not None)

    def patience_s(self, rank: int, work: Work, held: Sequence[HeldLease]) -> float:
        """Return how many seconds a worker may take for what it holds."""
        return self.pace.patience_s(rank, work, sum(len(lease.node) for lease in held))

    def be_late(self, rank: int, now: float) -> float:
        """Book that a worker is late; return for how many seconds it has brought nothing."""
        held_s = self.pace.held_s(rank, now)
        self.fences.set(rank, now + max(FENCE_S, held_s))
        self._cautious[rank] = now + CAUTION * held_s
        return held_s

    def may_be_trusted(self, rank: int, now: float) -> bool:
        """Tell whether a worker that was late gets work for no more than a sign of life."""
        return now >= self._cautious.get(rank, now)

    def hear(self, rank: int) -> None:
        """Book that a worker said something."""
        self.fences.drop(rank)

    def forget(self, rank: int) -> None:
        """Book that a worker is gone."""
        self.fences.drop(rank)
        self._cautious.pop(rank, None)
        self.pace.forget(rank)

    def fenced(self, now: float, *, has_others: bool) -> list[int]:
        """Return the ranks that lose their places now.

        None does while nobody else works: who is slow beyond all bounds is then still the one who gets on.
        """
        due = self.fences.due(now)
        for rank in due:
            if has_others:
                self.fences.drop(rank)
            else:
                self.fences.set(rank, now + FENCE_S)
        return due if has_others else []
