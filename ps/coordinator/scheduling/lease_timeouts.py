"""How long a worker may hold its pieces before they are leased again: by what it, or else others, took before. Pure.

Too soon costs some computing twice, too late a step that all wait for; neither changes the result. So a bound that
seldom errs is better than one that is exact.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from common.protocol.messages import Result, Work
from ps.coordinator.scheduling.lease_table import HeldLease

#: Seconds that no lease runs out in: other programs may take a processor for as long, and swapping longer.
FLOOR_S = 2.0

#: Seconds that the first leases of a worker last at least, whose code and data are not yet where they are fast: where
#: only another kind of work is known, and where it is known what others take. A newcomer that hangs costs them so much.
GRACE_S, NEWCOMER_S = 10.0, 4.0

#: A lease runs out after so many medians, and so many deviations more: the rule of TCP's timer (Jacobson, 1988), with
#: more patience, since other programs on a worker's machine come and go.
MEDIANS, DEVIATIONS = 4.0, 8.0

#: So many times the pieces of one kind of work may take as long as those of the other, which is all that is known.
OTHER_KIND = 100.0

#: Leases after which a worker is known, and those that are remembered.
ENOUGH, REMEMBERED = 3, 32


@dataclass
class DurationEstimate:
    """Seconds that a piece took in the last leases."""

    last: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    median_s: float = 0.0
    #: The median of the distances from the median.
    deviation_s: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        """Book a lease. Medians are taken anew at each of the first, then at every eighth: they cost 10 us."""
        self.last.append(seconds)
        self.count += 1
        if self.count <= 8 or self.count % 8 == 0:
            self.median_s = median(self.last)
            self.deviation_s = median([abs(one - self.median_s) for one in self.last])

    def is_known(self) -> bool:
        return self.count >= ENOUGH

    def bound_s(self, pieces: int) -> float:
        """Return the seconds that so many pieces take at the very most."""
        return pieces * (MEDIANS * self.median_s + DEVIATIONS * self.deviation_s)


@dataclass
class LeaseTimeouts:
    """The habits of all workers, and since when each of them holds what it holds."""

    #: Seconds after which any lease runs out.
    timeout_s: float
    _own: dict[tuple[int, Work], DurationEstimate] = field(default_factory=dict)
    _all: dict[Work, DurationEstimate] = field(default_factory=dict)
    _since: dict[int, float] = field(default_factory=dict)

    def begin(self, rank: int, now: float) -> None:
        """Book that a worker, which had nothing to do, was given work."""
        self._since[rank] = now

    def came(self, rank: int, result: Result, held: Sequence[HeldLease], now: float) -> None:
        """Book that a result came, of what a worker holds; it goes on with what else that is.

        One of anything else tells nothing: it came twice, or too late.
        """
        since, work, node = self._since.get(rank), _kind(result.work), result.node()
        if since is None or all(lease.node != node for lease in held):
            return
        for habit in (
            self._own.setdefault((rank, work), DurationEstimate()),
            self._all.setdefault(work, DurationEstimate()),
        ):
            habit.add((now - since) / len(node))
        self._since[rank] = now

    def forget(self, rank: int) -> None:
        """Book that a worker is gone."""
        self._since.pop(rank, None)
        for key in [key for key in self._own if key[0] == rank]:
            del self._own[key]

    def put_off(self, by_s: float) -> None:
        """Leave out some seconds, in which nobody looked."""
        self._since = {rank: since + by_s for rank, since in self._since.items()}

    def patience_s(self, rank: int, work: Work, pieces: int) -> float:
        """Return how many seconds a worker may take for so many pieces."""
        work = _kind(work)
        own, everybody = self._own.get((rank, work)), self._all.get(work)
        if own is not None and own.is_known():
            return min(self.timeout_s, max(FLOOR_S, own.bound_s(pieces)))
        if everybody is not None and everybody.is_known():
            return min(self.timeout_s, max(NEWCOMER_S, everybody.bound_s(pieces)))
        known = [habit for kind, habit in self._all.items() if kind != work and habit.is_known()]
        # A piece of the other kind may have many more samples, and its bound is no more than a guess.
        guess_s = max((OTHER_KIND * habit.bound_s(pieces) for habit in known), default=self.timeout_s)
        return min(self.timeout_s, max(GRACE_S, guess_s))

    def held_s(self, rank: int, now: float) -> float:
        """Return for how long a worker has brought nothing of what it holds."""
        return now - self._since.get(rank, now)

    def median_s(self, rank: int, work: Work) -> float | None:
        """Return the seconds that a piece takes a worker, or else everybody; None where nothing is known."""
        work = _kind(work)
        for habit in (self._own.get((rank, work)), self._all.get(work)):
            if habit is not None and habit.is_known():
                return habit.median_s
        return None


def _kind(work: Work) -> Work:
    """Return as what work counts: an audit computes what training does, and takes as long."""
    return "train" if work == "audit" else work
