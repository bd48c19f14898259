"""The state of one round: its leases, their expected ends, the results that came, and their sums. Pure.

Results come before their sums count: with several servers, each of which adds a slice of the sums, a result is pending
until all of them have theirs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count

from lockstep.common.aggregation.tree import Node, TreeSum
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import Result
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable, WithdrawnLease
from lockstep.ps.records.ledger import Account, UnusedCause
from lockstep.ps.run.plan import Round

#: Seconds from the begin of a lease's round until it was leased, and until its worker was past it.
Times = tuple[float | None, float | None]
UNKNOWN: Times = (None, None)


@dataclass
class PendingAcknowledgements:
    """The results of one round that other servers are still to acknowledge: by rank and node, as their sums."""

    results: dict[tuple[int, Node], Result] = field(default_factory=dict)
    #: Sums that all servers have, whether or not a result of them has come.
    acknowledged: set[tuple[int, Node]] = field(default_factory=set)

    def has_sums(self, rank: int, node: Node) -> bool:
        """Tell whether all servers have the sums of a result."""
        return (rank, node) in self.acknowledged

    def add(self, rank: int, result: Result) -> bool:
        """Record a result; return whether it is the first of its lease."""
        return self.results.setdefault((rank, result.node()), result) is result

    def acknowledge(self, rank: int, node: Node) -> Result | None:
        """Record that all servers have these sums; return their result, None if it has not come or is not awaited."""
        self.acknowledged.add((rank, node))
        return self.results.pop((rank, node), None)

    def remove(self, rank: int) -> None:
        """Forget a worker that is gone: those of its sums that have not arrived will not."""
        for key in [key for key in self.results if key[0] == rank]:
            del self.results[key]

    def has(self, rank: int) -> bool:
        """Tell whether a result of a worker is awaited."""
        return any(owner == rank for owner, _ in self.results)


#: Leases that a worker may hold: the next one is there when it finishes one.
WINDOW = 2


#: A time, and the number of the lease, so that leases are not compared.
_Entry = tuple[float, int, HeldLease]


@dataclass
class ExpectedEnds:
    """Heaps whose entries may be of leases that have ended: it costs least to find that out where it matters."""

    #: Leases without a second copy, by minus the time at which they are expected to end.
    _ends: list[_Entry] = field(default_factory=list)
    #: Leases by the time at which they are delayed, unless they have ended.
    _delays: list[_Entry] = field(default_factory=list)
    #: Leases that are delayed, with the part of each that no other worker has been given.
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
        """Return, once, a lease that is delayed by now; None if no lease is."""
        while self._delays and self._delays[0][0] <= now:
            lease = heappop(self._delays)[2]
            if table.is_held(lease):
                return lease
        return None

    def put_off(self, lease: HeldLease, until: float) -> None:
        """Record that a lease that was returned is delayed at a later time only: its worker began it later."""
        heappush(self._delays, (until, lease.number, lease))

    def latest(self, table: LeaseTable) -> tuple[HeldLease, float] | None:
        """Return the lease that is expected to end last, of those without a second copy, and when."""
        while self._ends and not table.is_held(self._ends[0][2]):
            heappop(self._ends)
        return (self._ends[0][2], -self._ends[0][0]) if self._ends else None

    def drop_latest(self) -> None:
        """Forget the lease that `latest` has returned: there is a second copy of it."""
        heappop(self._ends)


@dataclass
class RoundState:
    """The state of one round; each round has a new one."""

    round: Round
    #: Micro-batches that are leased alone, and whose results have digests.
    single: frozenset[int] = frozenset()
    #: When it began: the ledger's times are counted from there.
    began: float = 0.0
    #: As of `LeaseTable`.
    numbers: Iterator[int] = field(default_factory=partial(count, 1))
    leases: LeaseTable = field(init=False)
    pending: PendingAcknowledgements = field(default_factory=PendingAcknowledgements)
    #: When leases are expected to end.
    expected: ExpectedEnds = field(default_factory=ExpectedEnds)
    #: When all micro-batches are, by which what each worker gets is decided; None before anything is known.
    end: float | None = None
    #: Most micro-batches of a lease.
    most: int = 0
    #: The round's counts, over the same tree as its sums.
    tallies: TreeSum[Tally] = field(init=False)
    #: The account of the round for the ledger.
    account: Account = field(init=False)

    def __post_init__(self) -> None:
        total = self.round.micro_batches
        self.leases, self.account = LeaseTable(total, single=self.single, numbers=self.numbers), Account(total)
        self.tallies = TreeSum(total, lambda left, right: left + right)

    def was_leased(self, rank: int, node: Node) -> bool:
        """Return whether a worker was ever leased these micro-batches of a training step."""
        return self.round.work == "train" and self.leases.was_granted(rank, node)

    def on_result(self, member: Member, result: Result, *, has_shards: bool, times: Times = UNKNOWN) -> bool:
        """Check a result, whose sums came before it; return whether it counts by now.

        `times` are those of its lease if that was withdrawn. With shards a result does not count before all of them
        have their part of the sums.
        """
        rank, node = member.rank, result.node()
        if not self.is_needed(result) or not self.leases.was_granted(rank, node):
            self.refuse(member, result, times)
            return False
        if result.work != "train" or not has_shards or self.pending.has_sums(rank, node):
            return True
        if not self.pending.add(rank, result):
            self.refuse(member, result)
        return False

    def is_needed(self, result: Result) -> bool:
        """Tell whether a result is of this round, and no other was faster."""
        is_current = (result.work, result.step) == (self.round.work, self.round.step)
        return is_current and self.leases.may_accept(result.node())

    def refuse(self, member: Member, result: Result, times: Times = UNKNOWN) -> None:
        """Record a result that is not needed."""
        if result.step <= self.round.step:
            self.account.record_unused(result, member.rank, *times)

    def accept(self, member: Member, result: Result, now: float) -> tuple[list[HeldLease], bool]:
        """Record a result that counts; return which leases of other workers it ends, and whether it frees anything.

        It does if a larger lease than the result ends.
        """
        node, leases = result.node(), self.leases
        free = leases.free()
        ended = leases.accept(node) or []
        self.tallies.add(node, result.tally())
        if result.work == "train":
            granted = [lease.began for lease in ended if (lease.rank, lease.node) == (member.rank, node)]
            began_s = granted[0] - self.began if granted else None
            self.account.record_accepted(node, member.rank, result.losses, began_s, now - self.began)
        return [lease for lease in ended if lease.rank != member.rank], leases.free() > free

    def record_dropped(self, withdrawn: WithdrawnLease, computed: int, now: float) -> None:
        """Record how much of a lease that was withdrawn its worker had computed by then."""
        at, node, (began_s, ended_s) = withdrawn.round, withdrawn.lease.node, withdrawn.times(now)
        if done := min(computed, len(node)):
            part, rank = Node(node.lo, node.lo + done), withdrawn.lease.rank
            self.account.record_recomputed(at.work, at.step, [part], rank, UnusedCause.FASTER, [began_s], ended_s)

    def release(self, rank: int, why: str, now: float) -> list[Node]:
        """Release the leases of a worker that is gone or late, for a reason that the ledger lists; return them."""
        began_s = [lease.began - self.began for lease in self.leases.held_by(rank)]
        released, work, step = self.leases.release(rank), self.round.work, self.round.step
        self.account.record_recomputed(work, step, released, rank, why, began_s, now - self.began)
        return released

    def continue_with(self, at: Round, leases: LeaseTable) -> None:
        """Let something else be left of the round, whose results are kept."""
        self.round, self.leases, self.expected = at, leases, ExpectedEnds()

    def validate(self, available: Sequence[int]) -> None:
        """Raise AssertionError if no worker has work, and one of the `available` ranks could: for tests."""
        self.leases.validate()
        waiting = [] if self.leases.held else [*available]
        cannot = [rank for rank in waiting if len(self.leases.unassignable([rank])) == self.leases.free()]
        assert self.leases.failed_on or waiting == cannot, f"{waiting} wait for nothing"
