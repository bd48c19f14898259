"""The books of one round: who holds which pieces, what has come of them, and what it came to. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from common.aggregation.tree import Node, TreeSum
from common.job.tally import Tally
from common.protocol.messages import Result
from ps.coordinator.effects import AwaitShards, Effect
from ps.coordinator.membership import Member
from ps.coordinator.scheduling.audit import WHY, Audit
from ps.coordinator.scheduling.buffer_pool import BufferPool
from ps.coordinator.scheduling.lease_table import LeaseTable
from ps.coordinator.scheduling.lease_timeouts import LeaseTimeouts
from ps.coordinator.scheduling.pending import PendingAcknowledgements
from ps.coordinator.scheduling.scheduler import WINDOW, Scheduler, adding, occupied
from ps.records.ledger import Account
from ps.run.plan import Round


@dataclass
class RoundState:
    """What the coordinator knows of the round at hand; the next one has new books."""

    round: Round
    #: What of it is to be computed again.
    audit: Audit
    pieces: LeaseTable = field(init=False)
    slots: BufferPool = field(default_factory=BufferPool)
    awaiting: PendingAcknowledgements = field(default_factory=PendingAcknowledgements)
    #: The round's counts, over the same tree as its sums.
    tallies: TreeSum[Tally] = field(init=False)
    #: What the ledger is to tell of the round.
    account: Account = field(init=False)

    def __post_init__(self) -> None:
        pieces = self.round.pieces
        self.pieces, self.account = LeaseTable(pieces, alone=self.audit.chosen), Account(pieces)
        self.tallies = TreeSum(pieces, lambda left, right: left + right)

    def serve(self, members: Sequence[Member], ready: int, now: float, pace: LeaseTimeouts) -> list[Effect]:
        """Lease free pieces to some of `ready` members."""
        desk = Scheduler(
            round=self.round,
            pieces=self.pieces,
            slots=self.slots,
            awaiting=self.awaiting,
            ready=ready,
            now=now,
            pace=pace,
        )
        return desk.serve(members)

    def take(self, member: Member, result: Result, *, has_shards: bool) -> tuple[list[Effect], bool]:
        """Take in a result that came; return what is to be done with its sums, and whether it counts by now.

        Where there are shards it does not before all of them have their part.
        """
        add = adding(self.slots, member, result)
        if add is None or not self.needs(result) or not self.pieces.were_given(member.rank, result.node()):
            self.refuse(member, result)
            return [], False
        if result.work != "train":
            return [], True
        if not has_shards:
            return [add], True
        if not self.awaiting.add(member.rank, result):
            self.refuse(member, result)
            return [], False
        return [add, AwaitShards(rank=member.rank, node=result.node())], False

    def needs(self, result: Result) -> bool:
        """Tell whether a result is of this round, and no other was quicker."""
        is_current = (result.work, result.step) == (self.round.work, self.round.step)
        return is_current and self.pieces.may_accept(result.node())

    def refuse(self, member: Member, result: Result) -> None:
        """Book a result that nobody needs."""
        if result.step <= self.round.step:
            self.account.vain(result, member.rank)

    def accept(self, member: Member, result: Result) -> bool:
        """Book a result that counts; return whether others than its worker may have got something to do by that.

        They have where a lease ended that shares pieces with it: another's, or a larger one.
        """
        node, pieces = result.node(), self.pieces
        is_contested, free = pieces.holders(node) not in ([], [member.rank]), pieces.free()
        pieces.accept(node)
        self.tallies.add(node, Tally(result.loss_sum, result.correct, result.count))
        if result.work == "train":
            self.account.share(node, member.rank, result.losses)
            self.audit.book(member, result)
        return is_contested or pieces.free() > free

    def begin_audit(self) -> None:
        """Let the pieces that are to be computed again be all that is left of the round, for others than before."""
        self.round = replace(self.round, work="audit")
        self.pieces = LeaseTable.once_more(self.round.pieces, self.audit.barred())

    def accept_again(self, member: Member, result: Result) -> None:
        """Book a piece of which the audit found the same bits."""
        self.pieces.accept(result.node())
        self.account.again("audit", result.step, [result.node()], member.rank, WHY)

    def end_audit(self) -> None:
        """Let the round be what it was: a training step, all of whose pieces are done, and nothing is left to audit."""
        self.round = self.audit.round
        self.audit.findings.clear()

    def forgo(self, ready: Sequence[int]) -> list[Node]:
        """Give up what none of the `ready` ranks can compute; return it."""
        hopeless = self.pieces.hopeless(ready)
        for piece in hopeless:
            self.pieces.drop(piece)
        return [Node(piece, piece + 1) for piece in hopeless]

    def release(self, rank: int, why: str) -> list[Node]:
        """Take back what a worker holds that is gone, for a reason that the ledger tells; return it."""
        released = self.pieces.release(rank)
        self.awaiting.forget(rank)
        self.account.again(self.round.work, self.round.step, released, rank, why)
        return released

    def validate(self, ready: Sequence[int]) -> None:
        """Raise AssertionError where one of the `ready` ranks has less to do than it could: for tests."""
        self.pieces.validate()
        is_short = [rank for rank in ready if len(occupied(rank, self.pieces, self.slots, self.awaiting)) < WINDOW]
        hopeless = [rank for rank in is_short if len(self.pieces.hopeless([rank])) == self.pieces.free()]
        assert self.pieces.failed_on or is_short == hopeless, f"{is_short} wait for nothing"
