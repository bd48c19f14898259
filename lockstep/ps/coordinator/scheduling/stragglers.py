"""Finds workers that are late, or silent for too long: everything that the coordinator decides by time. Pure.

A lease expires by what its worker, or else the others, took before. Too soon costs some computing twice, too late a
step that all wait for; neither changes the result. So a bound that seldom errs is better than one that is exact.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

import msgspec

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import Message, Ping, Work
from lockstep.common.statemachine.machine import soonest
from lockstep.ps.coordinator.effects import Effect, ForgetWorker, Report
from lockstep.ps.coordinator.events import PROGRESS
from lockstep.ps.coordinator.membership import Member, Membership, MemberState
from lockstep.ps.coordinator.scheduling.lease_table import LeaseTable, Withdrawals
from lockstep.ps.coordinator.scheduling.round_state import RoundState
from lockstep.ps.coordinator.timer_queue import TimerQueue
from lockstep.ps.records.ledger import WorkerOut

#: Seconds that every lease lasts at least: other programs may take a processor for as long, and swapping longer.
FLOOR_S = 2.0

#: Seconds that the first leases of a worker last at least, whose code and data are not yet where they are fast: if only
#: another kind of work is known, and if it is known what others take. A newcomer that hangs costs them that long.
GRACE_S, NEWCOMER_S = 10.0, 4.0

#: A lease expires after so many medians plus so many deviations: the rule of TCP's timer (Jacobson, 1988), made more
#: lenient, since other programs on a worker's machine come and go.
MEDIANS, DEVIATIONS = 4.0, 8.0

#: Micro-batches of one kind of work may take this many times as long as those of the other, if only that one is known.
OTHER_KIND = 100.0

#: Leases after which a worker's usual time is known well enough for a bound, and those that are remembered.
ENOUGH, REMEMBERED = 3, 32

#: Leases by whose median it is judged what the next one takes: few, so that a change is followed within as many steps.
RECENT = 5

#: Seconds within which the server checks the time at least once while a worker could be late.
CHECK_S = 1.0

#: If more time passes between two checks, the server did not run, or was busy. Messages of workers wait meanwhile.
STALL_S = 2.0 * CHECK_S

#: Seconds for which a worker that is late stays a member, at least: its answer counts if it is the first.
EVICTION_S = 3.0

#: A late worker is on probation for so many times the seconds for which it brought nothing. Until then a sign of life
#: alone gets it no work: it may hang again, and the others, which wait for its micro-batches, would lose most of their
#: speed.
PROBATION = 20.0


#: Shortest time of a micro-batch that is expected: less is made of messages and of waking up, and tells no speed.
SHORTEST_S = 0.0005

#: A worker is not delayed by less than this: other programs take as long now and then, and so does a system's timer.
LEAST_SLACK_S = 0.001

#: A worker is delayed by this part of the time of a lease at least: times vary.
SLACK = 0.25

#: A worker on trial has become quicker if a micro-batch takes it less than this part of what it took before: otherwise
#: that may be luck.
QUICKER = 0.5


@dataclass
class DurationEstimate:
    """Seconds that a micro-batch took in the last leases."""

    last: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    median_s: float = 0.0
    #: The median of the distances from the median.
    deviation_s: float = 0.0
    #: The most recent ones, and what the next is expected to be.
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    expected_s: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        """Record a lease. Medians are recomputed at each of the first, then at every eighth: they cost 10 us."""
        self.last.append(seconds)
        self.count += 1
        self.recent.append(seconds)
        self.expected_s = sorted(self.recent)[(len(self.recent) - 1) // 2]
        if self.count <= 8 or self.count % 8 == 0:
            self.median_s = median(self.last)
            self.deviation_s = median([abs(one - self.median_s) for one in self.last])

    def is_known(self) -> bool:
        return self.count >= ENOUGH

    def bound_s(self, micro_batches: int) -> float:
        """Return the seconds that so many micro-batches take at the very most."""
        return micro_batches * (MEDIANS * self.median_s + DEVIATIONS * self.deviation_s)


@dataclass
class LeaseTimeouts:
    """The durations of leases, measured for each worker and for all."""

    #: Seconds after which any lease expires.
    limit_s: float
    _own: dict[tuple[int, Work], DurationEstimate] = field(default_factory=dict)
    _all: dict[Work, DurationEstimate] = field(default_factory=dict)
    #: By rank, since when a worker has brought nothing of what it holds.
    _since: dict[int, float] = field(default_factory=dict)

    def begin(self, rank: int, now: float) -> None:
        """Record that a worker, which had nothing to do, was given work."""
        self._since[rank] = now

    def record(self, rank: int, work: Work, micro_batches: int, now: float, *, is_trial: bool = False) -> None:
        """Measure so many micro-batches of a lease that a worker has just done; it continues with what else it holds.

        As in `add`. Nothing is measured of a worker that was given nothing.
        """
        since = self._since.get(rank)
        if since is not None:
            self.add(rank, work, max(0.0, now - since) / micro_batches, is_trial=is_trial)
            self._since[rank] = now

    def add(self, rank: int, work: Work, each_s: float, *, is_trial: bool = False) -> None:
        """Record how many seconds a micro-batch took a worker.

        If a trial shows that it has become quicker, what it took before does not count any more.
        """
        work = _kind(work)
        own = self._own.setdefault((rank, work), DurationEstimate())
        if is_trial and each_s < QUICKER * own.expected_s:
            own.recent.clear()
        for estimate in (own, self._all.setdefault(work, DurationEstimate())):
            estimate.add(each_s)

    def remove(self, rank: int) -> None:
        """Forget a worker that is gone."""
        self._since.pop(rank, None)
        for key in [key for key in self._own if key[0] == rank]:
            del self._own[key]

    def postpone(self, by_s: float) -> None:
        """Do not count some seconds in which the server did not run."""
        self._since = {rank: since + by_s for rank, since in self._since.items()}

    def timeout_s(self, rank: int, work: Work, micro_batches: int) -> float:
        """Return how many seconds a worker may take for so many micro-batches."""
        work = _kind(work)
        own, everybody = self._own.get((rank, work)), self._all.get(work)
        if own is not None and own.is_known():
            return min(self.limit_s, max(FLOOR_S, own.bound_s(micro_batches)))
        if everybody is not None and everybody.is_known():
            return min(self.limit_s, max(NEWCOMER_S, everybody.bound_s(micro_batches)))
        known = [estimate for kind, estimate in self._all.items() if kind != work and estimate.is_known()]
        # A micro-batch of the other kind may have many more samples, and its bound is no more than a guess.
        guess_s = max((OTHER_KIND * estimate.bound_s(micro_batches) for estimate in known), default=self.limit_s)
        return min(self.limit_s, max(GRACE_S, guess_s))

    def is_known(self, work: Work) -> bool:
        """Tell whether a worker has done such work."""
        return _kind(work) in self._all

    def expected_s(self, rank: int, work: Work) -> float:
        """Return the seconds that a micro-batch will take a worker, or else the usual one: above 0.

        Only for work that `is_known`.
        """
        work = _kind(work)
        return max(SHORTEST_S, self._own.get((rank, work), self._all[work]).expected_s)

    def slack_s(self, rank: int, work: Work, micro_batches: int) -> float:
        """Return by how many seconds a lease may take longer than expected before its worker counts as delayed.

        At least a micro-batch of a quick worker, which is the cost of a second copy; at most one of its worker.
        """
        quick_s, each_s = min(self._all[_kind(work)].recent), self.expected_s(rank, work)
        return max(LEAST_SLACK_S, quick_s, min(SLACK * micro_batches, 1.0) * each_s)

    def remaining_s(self, rank: int, work: Work, micro_batches: int, now: float) -> float:
        """Return in how many seconds a worker will have done so many micro-batches, the first of which it is at."""
        return max(0.0, micro_batches * self.expected_s(rank, work) - self.held_s(rank, now))

    def held_s(self, rank: int, now: float) -> float:
        """Return for how long a worker has brought nothing of what it holds."""
        return now - self.since(rank, now)

    def since(self, rank: int, now: float) -> float:
        """Return since when a worker has brought nothing of what it holds; later than `now` if it is to begin then."""
        return self._since.get(rank, now)

    def median_s(self, rank: int, work: Work) -> float | None:
        """Return the seconds that a micro-batch takes a worker, or else everybody; None if nothing is known."""
        work = _kind(work)
        for estimate in (self._own.get((rank, work)), self._all.get(work)):
            if estimate is not None and estimate.is_known():
                return estimate.median_s
        return None


def _kind(work: Work) -> Work:
    """Return what a work is timed as: an audit computes what training does, and takes as long."""
    return "train" if work == "audit" else work


class LateWorker(msgspec.Struct, frozen=True):
    """A worker that is late, with what it held and for how many seconds it has brought nothing."""

    member: Member
    released: list[Node]
    held_s: float


@dataclass
class StragglerMonitor:
    """Takes the leases of workers that are late, and the places of those that stay silent."""

    membership: Membership
    timeouts: LeaseTimeouts
    withdrawals: Withdrawals = field(default_factory=Withdrawals)
    #: By rank, when a worker that is late, and says nothing, is evicted.
    evictions: TimerQueue[int] = field(default_factory=TimerQueue)
    #: By rank, until when a worker that was late has to bring something before it gets work.
    _probation: dict[int, float] = field(default_factory=dict)
    #: When the server last checked the time; infinite before.
    _checked: float = math.inf

    def check(self, now: float, leases: LeaseTable) -> None:
        """Record that the server runs; the time in which it did not counts against no worker."""
        stalled_s, self._checked = now - self._checked, now
        if stalled_s > STALL_S:
            leases.postpone(stalled_s)
            self.withdrawals.postpone(stalled_s)
            self.timeouts.postpone(stalled_s)
            for rank, at in list(self.evictions.times.items()):
                self.evictions.set(rank, at + stalled_s)

    def deadline(self, leases: LeaseTable) -> float | None:
        """Return when to check again."""
        if not leases.held and not self.evictions.times and not self.withdrawals.open:
            return None
        withdrawals, evictions = self.withdrawals.deadlines.soonest(), self.evictions.soonest()
        return soonest(self._checked + CHECK_S, leases.deadlines.soonest(), withdrawals, evictions)

    def expire(self, state: RoundState, now: float) -> list[LateWorker]:
        """Release the leases of workers that are late: dead, hung or slow. Their answers may still be the first."""
        late = dict.fromkeys([*state.leases.deadlines.due(now), *self.withdrawals.deadlines.due(now)])
        return [self._expire(rank, state, now) for rank in late]

    def _expire(self, rank: int, state: RoundState, now: float) -> LateWorker:
        member, held_s = self.membership.holder(rank), self.timeouts.held_s(rank, now)
        self.evictions.set(rank, now + max(EVICTION_S, held_s))
        self._probation[rank] = now + PROBATION * held_s
        released = state.release(rank, f"it had sent nothing for {held_s:.1f} s", now)
        self.withdrawals.remove(rank)
        self.membership.set_state(member, MemberState.SUSPECT)
        return LateWorker(member, released, held_s)

    def report(self, late: LateWorker, state: RoundState) -> Report:
        """Return the report of a late worker, once its micro-batches are leased again."""
        who, rank, held_s = late.member.named(), late.member.rank, late.held_s
        if not late.released:
            return Report(text=f"{who} has sent nothing for {held_s:.1f} s: others have computed its micro-batches")
        takers = sorted({taker for node in late.released for taker in state.leases.holders(node)})
        median_s = self.timeouts.median_s(rank, state.round.work)
        usual = "" if median_s is None else f" (median {median_s:.2g} s per micro-batch)"
        workers = f"worker{'s' * (len(takers) > 1)} {', '.join(map(str, takers))}"
        again = f"leased again to {workers}" if takers else "to be leased again as soon as a worker is free"
        return Report(text=f"{who} has held {state.round.named(late.released)} for {held_s:.1f} s{usual}: {again}")

    def evict(self, state: RoundState, now: float) -> list[Effect]:
        """Remove workers that have been silent for too long: if one comes back, it has to join again.

        No worker is removed while no other has work: one that is slow beyond all bounds then still makes progress.
        """
        due = self.evictions.due(now)
        if self.membership.count(MemberState.READY):
            return [effect for rank in due for effect in self._evict(self.membership.holder(rank), state, now)]
        for rank in due:
            self.evictions.set(rank, now + EVICTION_S)
        return []

    def _evict(self, member: Member, state: RoundState, now: float) -> list[Effect]:
        why = f"it has sent nothing for {self.timeouts.held_s(member.rank, now):.1f} s"
        self.membership.remove(member.peer)
        return [Report(text=f"{member.named()} was evicted: {why}"), self._forget(member, why, state)]

    def left(self, member: Member, reason: str, state: RoundState, now: float) -> list[Effect]:
        """Release what a worker held that has left, and report it."""
        released = state.release(member.rank, f"it left: {reason}", now)
        passed_on = f"; {state.round.named(released)} go to others" if released else ""
        forget = self._forget(member, reason, state)
        return [Report(text=f"{member.named()} left: {reason}{passed_on}"), forget]

    def _forget(self, member: Member, why: str, state: RoundState) -> ForgetWorker:
        rank = member.rank
        state.account.add(WorkerOut(rank=rank, why=why))
        state.pending.remove(rank)
        self.evictions.drop(rank)
        self._probation.pop(rank, None)
        self.withdrawals.remove(rank)
        self.timeouts.remove(rank)
        return ForgetWorker(rank=rank)

    def is_back(self, member: Member, message: Message, state: RoundState, now: float) -> bool:
        """Record that a worker is alive; progress extends its leases. Tell whether a suspect may have work again.

        A suspect that says something again and again, but brings nothing, does not.
        """
        rank, leases = member.rank, state.leases
        self.evictions.drop(rank)
        if isinstance(message, PROGRESS) and rank in leases.held:
            micro_batches = sum(len(lease.node) for lease in leases.held_by(rank))
            # If other servers are not done, the shard group watches those.
            own_s = self.timeouts.timeout_s(rank, state.round.work, micro_batches)
            leases.extend(rank, now + (self.timeouts.limit_s if state.pending.has(rank) else own_s))
        if member.state is not MemberState.SUSPECT:
            return False
        is_needed, is_on_probation = not self.membership.count(MemberState.READY), now < self._probation.get(rank, now)
        return is_needed or not isinstance(message, Ping) or not is_on_probation
