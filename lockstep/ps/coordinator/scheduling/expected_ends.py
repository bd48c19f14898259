"""When the leases of a round are expected to end: which end last, and which should have ended. Pure."""

from dataclasses import dataclass, field
from heapq import heappop, heappush

from lockstep.common.aggregation.tree import Node
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable

#: A time, and the number of the lease, so that leases are not compared.
_Entry = tuple[float, int, HeldLease]


@dataclass
class ExpectedEnds:
    """Heaps whose entries may be of leases that have ended: it costs least to find that out where it matters."""

    #: Leases of which nobody has a second copy, by minus the time at which they are expected to end.
    _ends: list[_Entry] = field(default_factory=list)
    #: Leases by the time at which they are delayed, unless they have ended.
    _delays: list[_Entry] = field(default_factory=list)
    #: Leases that are delayed, with what of them nobody else has been given.
    delayed: list[tuple[HeldLease, Node]] = field(default_factory=list)

    def add(self, lease: HeldLease, end: float, slack_s: float) -> None:
        """Record when a lease is expected to end, and how much later it is delayed."""
        heappush(self._ends, (-end, lease.number, lease))
        heappush(self._delays, (end + slack_s, lease.number, lease))

    def next_delay(self, table: LeaseTable) -> float | None:
        """Return when the next lease is delayed unless it ends before."""
        while self._delays and not table.is_held(self._delays[0][2]):
            heappop(self._delays)
        return self._delays[0][0] if self._delays else None

    def pop_delayed(self, table: LeaseTable, now: float) -> HeldLease | None:
        """Return, once, a lease that is delayed by now; None if there is none."""
        while self._delays and self._delays[0][0] <= now:
            lease = heappop(self._delays)[2]
            if table.is_held(lease):
                return lease
        return None

    def put_off(self, lease: HeldLease, until: float) -> None:
        """Record that a lease that was returned is delayed at a later time only: its worker began it later."""
        heappush(self._delays, (until, lease.number, lease))

    def latest(self, table: LeaseTable) -> tuple[HeldLease, float] | None:
        """Return the lease that is expected to end last, of those that nobody has a second copy of, and when."""
        while self._ends and not table.is_held(self._ends[0][2]):
            heappop(self._ends)
        return (self._ends[0][2], -self._ends[0][0]) if self._ends else None

    def drop_latest(self) -> None:
        """Forget the lease that `latest` has returned: there is a second copy of it."""
        heappop(self._ends)
