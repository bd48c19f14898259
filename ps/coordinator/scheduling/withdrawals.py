"""Leases that were taken back from workers since others were faster, until these say that they are past them. Pure.

A worker that computes for somebody else's result is not idle: what it is given waits. So it gets nothing before it has
answered, and if it does not answer in the time of the lease, it is late as with any other.
"""

from dataclasses import dataclass, field

from common.aggregation.tree import Node
from common.protocol.messages import Work
from ps.coordinator.scheduling.lease_table import HeldLease
from ps.coordinator.timer_queue import TimerQueue

#: What names a lease among those of all rounds: its work, its step and its number.
LeaseKey = tuple[Work, int, int]


@dataclass
class Withdrawals:
    """The leases that were withdrawn and are not answered."""

    #: By rank: none is empty.
    open: dict[int, dict[LeaseKey, HeldLease]] = field(default_factory=dict)
    #: By rank, when the first of them expires.
    _deadlines: TimerQueue[int] = field(default_factory=TimerQueue)

    def add(self, work: Work, step: int, lease: HeldLease) -> None:
        """Record that a lease was withdrawn."""
        self.open.setdefault(lease.rank, {})[work, step, lease.number] = lease
        self._set_deadline(lease.rank)

    def answer(self, rank: int, key: LeaseKey) -> Node | None:
        """Record that a worker is past a lease; return its node, None if no answer was awaited."""
        lease = self.open.get(rank, {}).pop(key, None)
        if lease is None:
            return None
        self._set_deadline(rank)
        return lease.node

    def is_busy(self, rank: int) -> bool:
        """Tell whether a worker is still to answer."""
        return rank in self.open

    def remove(self, rank: int) -> None:
        """Expect no answer of a worker any more."""
        self.open.pop(rank, None)
        self._deadlines.drop(rank)

    def expired(self, now: float) -> list[int]:
        """Return the ranks that have not answered within the time of a lease."""
        return self._deadlines.due(now)

    def next_deadline(self) -> float | None:
        """Return when the next answer is late."""
        return self._deadlines.soonest()

    def postpone(self, by_s: float) -> None:
        """Expect all answers later."""
        for rank, at in list(self._deadlines.times.items()):
            self._deadlines.set(rank, at + by_s)

    def _set_deadline(self, rank: int) -> None:
        leases = self.open.get(rank)
        if leases:
            self._deadlines.set(rank, min(lease.deadline for lease in leases.values()))
        else:
            self.remove(rank)
