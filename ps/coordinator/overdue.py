"""What becomes of workers that bring nothing: their pieces are leased again, and later they lose their places. Pure."""

from dataclasses import dataclass

from common.aggregation.tree import Node
from ps.coordinator.effects import Effect, ForgetWorker, Report
from ps.coordinator.membership import Member, Membership, MemberState
from ps.coordinator.scheduling.round_state import RoundState
from ps.coordinator.scheduling.stragglers import StragglerMonitor
from ps.coordinator.status import late_text


@dataclass(frozen=True, slots=True)
class LateWorker:
    """A worker that is late, with what it held and for how many seconds it has brought nothing."""

    member: Member
    released: list[Node]
    held_s: float


@dataclass(frozen=True)
class Overdue:
    """The books in which that is looked up and changed, for the moment of one event."""

    books: RoundState
    roster: Membership
    vigil: StragglerMonitor

    def expire(self, now: float) -> list[LateWorker]:
        """Take back what is held by workers that are late: dead, hung or slow. Their answers may still be the first."""
        return [self._expire(rank, now) for rank in self.books.pieces.expired(now)]

    def _expire(self, rank: int, now: float) -> LateWorker:
        released, member = self.books.pieces.release(rank), self.roster.of_rank(rank)
        assert member is not None  # what a member held was released when it left
        self.roster.stand(member, MemberState.SILENT)
        held_s = self.vigil.be_late(rank, now)
        why = f"it had brought nothing for {held_s:.1f} s"
        self.books.account.again(self.books.round.work, self.books.round.step, released, rank, why)
        return LateWorker(member, released, held_s)

    def told(self, late: LateWorker) -> Report:
        """Return what a person is told, once the pieces are leased again."""
        takers = sorted({rank for node in late.released for rank in self.books.pieces.holders(node)})
        median_s = self.vigil.pace.median_s(late.member.rank, self.books.round.work)
        what = self.books.round.named(late.released)
        return Report(text=late_text(late.member.named(), what, late.held_s, median_s, takers))

    def fence(self, now: float) -> list[Effect]:
        """Take away the places of those who have been silent for too long: who comes back is told to join anew."""
        ranks = self.vigil.fenced(now, has_others=self.roster.number(MemberState.READY) > 0)
        return [effect for rank in ranks for effect in self._fence(rank, now)]

    def _fence(self, rank: int, now: float) -> list[Effect]:
        member, silent_s = self.roster.of_rank(rank), self.vigil.pace.held_s(rank, now)
        assert member is not None
        self.roster.remove(member.peer)
        self.books.awaiting.forget(rank)
        self.vigil.forget(rank)
        told = Report(text=f"{member.named()} lost its place: it has brought nothing for {silent_s:.1f} s")
        return [told, ForgetWorker(peer=member.peer, rank=rank)]
