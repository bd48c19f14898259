"""Leases that were withdrawn from workers since others were faster, until these say that they are past them. Pure.

A worker that is stopped has done so within a micro-batch, and can be given work meanwhile. One that is not may stand
still: it gets nothing before it has answered, and if it does not answer in the time of the lease, it is late as with
any other.
"""

from dataclasses import dataclass, field, replace

from lockstep.common.protocol.messages import LeaseKey
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease
from lockstep.ps.coordinator.timer_queue import TimerQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawnLease:
    """A lease that its worker is to stop computing."""

    rank: int
    key: LeaseKey
    #: Since when it had brought nothing, when the answer should be there, and when it is later than any lease lasts.
    began: float
    due: float
    deadline: float
    #: The lease itself, None if it is of several steps, and when its round began.
    lease: HeldLease | None = None
    round_began: float = 0.0

    def times(self, now: float) -> tuple[float, float]:
        """Return how many seconds after its round had begun it was leased, and it is now."""
        assert self.lease is not None  # only leases of a round are timed
        return self.lease.began - self.round_began, now - self.round_began


@dataclass
class Withdrawals:
    """The leases that were withdrawn and are not answered."""

    #: By rank: none is empty.
    open: dict[int, dict[LeaseKey, WithdrawnLease]] = field(default_factory=dict)
    #: By rank, when the first of them expires.
    _deadlines: TimerQueue[int] = field(default_factory=TimerQueue)

    def add(self, withdrawn: WithdrawnLease) -> None:
        """Record that a lease was withdrawn."""
        self.open.setdefault(withdrawn.rank, {})[withdrawn.key] = withdrawn
        self._set_deadline(withdrawn.rank)

    def answer(self, rank: int, key: LeaseKey) -> WithdrawnLease | None:
        """Record that a worker is past a lease; return that, None if no answer was awaited."""
        leases = self.open.get(rank)
        withdrawn = None if leases is None else leases.pop(key, None)
        if withdrawn is not None:
            self._set_deadline(rank)
        return withdrawn

    def has_any(self, rank: int) -> bool:
        """Tell whether a worker is still to answer."""
        return rank in self.open

    def stands_still(self, rank: int, now: float) -> bool:
        """Tell whether a worker should have answered by now."""
        leases = self.open.get(rank)
        return leases is not None and any(withdrawn.due <= now for withdrawn in leases.values())

    def began(self, rank: int) -> float | None:
        """Return since when a worker had brought nothing when a lease was withdrawn; None if it has answered all."""
        return min((withdrawn.began for withdrawn in self.open.get(rank, {}).values()), default=None)

    def remove(self, rank: int) -> None:
        """Expect no answer of a worker any more."""
        self.open.pop(rank, None)
        self._deadlines.drop(rank)

    def expired(self, now: float) -> list[int]:
        """Return the ranks that have not answered within the time of a lease."""
        return self._deadlines.due(now)

    def next_deadline(self) -> float | None:
        """Return when the next answer is later than any lease lasts."""
        return self._deadlines.soonest()

    def postpone(self, by_s: float) -> None:
        """Do not count some seconds in which the server did not run."""
        for rank, leases in self.open.items():
            for key, one in leases.items():
                began, due, deadline = (at + by_s for at in (one.began, one.due, one.deadline))
                leases[key] = replace(one, began=began, due=due, deadline=deadline)
            self._set_deadline(rank)

    def _set_deadline(self, rank: int) -> None:
        leases = self.open.get(rank)
        if leases:
            self._deadlines.set(rank, min(one.deadline for one in leases.values()))
        else:
            self.remove(rank)
