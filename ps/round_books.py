"""The books of one round: who holds which pieces, what has come of them, and what it came to. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.messages import Result
from common.reduction import Node, TreeSum
from common.tally import Tally
from ps.awaiting import Awaiting
from ps.effects import AddShared, AddSums, Effect
from ps.leasing import WINDOW, Desk, adding, occupied
from ps.ledger import Account
from ps.pace import Pace
from ps.pieces import Pieces
from ps.plan import Round
from ps.roster import Member
from ps.slots import SlotBook


@dataclass
class RoundBooks:
    """What the coordinator knows of the round at hand; the next one has new books."""

    round: Round
    pieces: Pieces = field(init=False)
    slots: SlotBook = field(default_factory=SlotBook)
    awaiting: Awaiting = field(default_factory=Awaiting)
    #: The round's counts, over the same tree as its sums.
    tallies: TreeSum[Tally] = field(init=False)
    #: What the ledger is to tell of the round.
    account: Account = field(init=False)

    def __post_init__(self) -> None:
        pieces = self.round.pieces
        self.pieces, self.account = Pieces(pieces), Account(pieces)
        self.tallies = TreeSum(pieces, lambda left, right: left + right)

    def serve(self, members: Sequence[Member], ready: int, now: float, pace: Pace) -> list[Effect]:
        """Lease free pieces to some of `ready` members."""
        desk = Desk(
            round=self.round,
            pieces=self.pieces,
            slots=self.slots,
            awaiting=self.awaiting,
            ready=ready,
            now=now,
            pace=pace,
        )
        return desk.serve(members)

    def is_of_another(self, result: Result) -> bool:
        """Tell whether a result is of another round than this one."""
        return (result.work, result.step) != (self.round.work, self.round.step)

    def adding(self, member: Member, result: Result) -> AddSums | AddShared | None:
        """Return how the sums of a result get into the tree, None where the result is not needed, or they are gone."""
        add = adding(self.slots, member, result)
        is_needed = not self.is_of_another(result) and self.pieces.may_accept(result.node())
        return add if is_needed else None

    def refuse(self, member: Member, result: Result) -> list[Effect]:
        """Book a result that nobody needs."""
        if result.step <= self.round.step:
            self.account.vain(result, member.rank)
        return []

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
        return is_contested or pieces.free() > free

    def release(self, rank: int, why: str) -> list[Node]:
        """Take back what a worker holds that is gone, for a reason that the ledger tells; return it."""
        released = self.pieces.release(rank)
        self.awaiting.forget(rank)
        self.account.again(self.round.work, self.round.step, released, rank, why)
        return released

    def validate(self, ready: Sequence[int]) -> None:
        """Raise AssertionError where one of the `ready` ranks has less to do than it could: for tests."""
        is_short = [rank for rank in ready if len(occupied(rank, self.pieces, self.slots, self.awaiting)) < WINDOW]
        assert not (is_short and self.pieces.free() and not self.pieces.failed_on), f"{is_short} wait for nothing"
