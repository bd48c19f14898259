"""The state of one round: who computes what, which results came, and what they add up to. Pure.

Results come before their sums count: with several servers, each of which adds a slice of the sums, a result is pending
until all of them have theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lockstep.common.aggregation.tree import Node, TreeSum
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import Result
from lockstep.ps.coordinator.effects import AddSharedSums, AwaitShards, Effect
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.coordinator.scheduling.audit import AUDITED, Audit
from lockstep.ps.coordinator.scheduling.buffer_pool import BufferPool
from lockstep.ps.coordinator.scheduling.expected_ends import ExpectedEnds
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable
from lockstep.ps.records.ledger import Account
from lockstep.ps.run.plan import Round

#: Seconds from the begin of a lease's round until it was leased, and until its worker was past it.
Times = tuple[float | None, float | None]
UNKNOWN: Times = (None, None)


@dataclass
class PendingAcknowledgements:
    """The results of one round that other servers are still to acknowledge."""

    results: dict[tuple[int, Node], Result] = field(default_factory=dict)

    def add(self, rank: int, result: Result) -> bool:
        """Record a result; return whether it is the first of its lease."""
        key = rank, result.node()
        if key in self.results:
            return False
        self.results[key] = result
        return True

    def acknowledge(self, rank: int, node: Node) -> Result | None:
        """Return a result of which all servers have the sums, None if it is not awaited any more."""
        return self.results.pop((rank, node), None)

    def remove(self, rank: int) -> None:
        """Forget a worker that is gone: those of its sums that have not arrived will not."""
        for key in [key for key in self.results if key[0] == rank]:
            del self.results[key]

    def has(self, rank: int) -> bool:
        """Tell whether a result of a worker is awaited."""
        return any(owner == rank for owner, _ in self.results)

    def numbers(self, rank: int) -> list[int]:
        """Return the numbers of the leases whose results of a worker have come: their sums are still being read."""
        return [result.number for (owner, _), result in self.results.items() if owner == rank]


@dataclass
class RoundState:
    """The state of one round; each round has a new one."""

    round: Round
    #: Which of its micro-batches are computed again.
    audit: Audit
    #: When it began: the ledger's times are counted from there.
    began: float = 0.0
    leases: LeaseTable = field(init=False)
    buffers: BufferPool = field(default_factory=BufferPool)
    pending: PendingAcknowledgements = field(default_factory=PendingAcknowledgements)
    #: When leases are expected to end.
    expected: ExpectedEnds = field(default_factory=ExpectedEnds)
    #: When all micro-batches are, by which what each worker gets is decided; None before anything is known.
    end: float | None = None
    #: Most micro-batches of a lease.
    most: int = 0
    #: The round's counts, over the same tree as its sums.
    tallies: TreeSum[Tally] = field(init=False)
    #: What the ledger will list of the round.
    account: Account = field(init=False)

    def __post_init__(self) -> None:
        total = self.round.micro_batches
        self.leases, self.account = LeaseTable(total, single=self.audit.chosen), Account(total)
        self.tallies = TreeSum(total, lambda left, right: left + right)

    def slots_in_use(self, rank: int) -> list[int]:
        """Return the slots of sums that a worker needs: for what it holds, and for what is still being read."""
        held = [lease.node for lease in self.leases.held_by(rank)]
        return self.buffers.needed(rank, held, self.pending.numbers(rank))

    def count_slots(self, rank: int) -> int:
        """Return how many slots of sums a worker needs: see `slots_in_use`."""
        # Each lease has a slot of its own; other servers seldom still read one.
        return len(self.slots_in_use(rank)) if self.pending.results else len(self.leases.held_by(rank))

    def on_result(
        self, member: Member, result: Result, *, has_shards: bool, times: Times = UNKNOWN
    ) -> tuple[list[Effect], bool]:
        """Check a result; return what is to be done with its sums, and whether it counts by now.

        `times` are those of its lease if that was withdrawn.

        Sums that travel came before it; those in shared memory are still in their slot, or not to be had any more. With
        shards a result does not count before all of them have their part.
        """
        rank, node, is_training = member.rank, result.node(), result.work == "train"
        slot = self.buffers.slot_of(rank, result.number) if member.shares and is_training else None
        is_lost = member.shares and is_training and slot is None
        if is_lost or not self.is_needed(result) or not self.leases.was_granted(rank, node):
            self.refuse(member, result, times)
            return [], False
        effects: list[Effect] = [] if slot is None else [AddSharedSums(node=node, rank=rank, slot=slot)]
        if not is_training or not has_shards:
            return effects, True
        if not self.pending.add(rank, result):
            self.refuse(member, result)
            return [], False
        return [*effects, AwaitShards(rank=rank, node=node)], False

    def is_needed(self, result: Result) -> bool:
        """Tell whether a result is of this round, and no other was faster."""
        is_current = (result.work, result.step) == (self.round.work, self.round.step)
        return is_current and self.leases.may_accept(result.node())

    def refuse(self, member: Member, result: Result, times: Times = UNKNOWN) -> None:
        """Record a result that nobody needs."""
        if result.step <= self.round.step:
            self.account.record_unused(result, member.rank, *times)

    def accept(self, member: Member, result: Result, now: float) -> tuple[list[HeldLease], bool]:
        """Record a result that counts; return which leases of other workers it ends, and whether it frees anything.

        It does if a larger lease than the result ends.
        """
        node, leases = result.node(), self.leases
        free = leases.free()
        ended = leases.accept(node) or []
        self.tallies.add(node, Tally(result.loss_sum, result.correct, result.count))
        if result.work == "train":
            granted = [lease.began for lease in ended if (lease.rank, lease.node) == (member.rank, node)]
            began_s = granted[0] - self.began if granted else None
            self.account.record_accepted(node, member.rank, result.losses, began_s, now - self.began)
            self.audit.record(member, result)
        return [lease for lease in ended if lease.rank != member.rank], leases.free() > free

    def release(self, rank: int, why: str, now: float) -> list[Node]:
        """Take back the leases of a worker that is gone or late, for a reason that the ledger lists; return them."""
        began_s = [lease.began - self.began for lease in self.leases.held_by(rank)]
        released, work, step = self.leases.release(rank), self.round.work, self.round.step
        self.account.record_recomputed(work, step, released, rank, why, began_s, now - self.began)
        return released

    def begin_audit(self) -> None:
        """Let the micro-batches that are audited be all that is left of the round, for other workers than before."""
        self.round = replace(self.round, work="audit")
        self.leases = LeaseTable.for_audit(self.round.micro_batches, self.audit.excluded(), self.leases.count)
        self.expected = ExpectedEnds()

    def accept_audited(self, member: Member, result: Result) -> list[HeldLease]:
        """Record a micro-batch for which the audit found the same bits; return which leases of others it ends."""
        ended = self.leases.accept(result.node()) or []
        self.account.record_recomputed("audit", result.step, [result.node()], member.rank, AUDITED)
        return [lease for lease in ended if lease.rank != member.rank]

    def skip_unassignable(self, ready: Sequence[int]) -> list[Node]:
        """Give up the micro-batches that none of the `ready` ranks may compute; return them."""
        skipped = self.leases.unassignable(ready)
        for micro_batch in skipped:
            self.leases.skip(micro_batch)
        return [Node(micro_batch, micro_batch + 1) for micro_batch in skipped]

    def end_audit(self) -> None:
        """Let the round be what it was: a training step, all of which is done, with nothing left to audit."""
        self.round = self.audit.round
        self.audit.findings.clear()

    def validate(self, available: Sequence[int]) -> None:
        """Raise AssertionError if nobody works, and one of the `available` ranks could: for tests."""
        self.leases.validate()
        waiting = [] if self.leases.held else [rank for rank in available if not self.slots_in_use(rank)]
        cannot = [rank for rank in waiting if len(self.leases.unassignable([rank])) == self.leases.free()]
        assert self.leases.failed_on or waiting == cannot, f"{waiting} wait for nothing"
