"""What becomes of a piece that raised, or whose loss or gradient is not finite: for the moment of one event. Pure."""

from dataclasses import dataclass

from common.files.sanitize import indented, one_line
from ps.coordinator import events
from ps.coordinator.divergence import diverged_text
from ps.coordinator.membership import Membership
from ps.coordinator.scheduling.round_state import RoundState


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why the run ends."""

    text: str
    is_diverged: bool = False


@dataclass(frozen=True, slots=True)
class Failures:
    """The books in which it is looked up."""

    books: RoundState
    roster: Membership

    def raised(self, event: events.LeaseFailed) -> Failure | str:
        """Book a piece that raised; return the run's failure, or what is said: empty where it is no trouble."""
        member, failed, at = self.roster.members.get(event.peer), event.failed, self.books.round
        if member is None or (failed.work, failed.step) != (at.work, at.step):
            return ""
        is_second = self.books.pieces.fail(failed.node(), member.rank)
        if is_second is None:
            return ""
        raised = one_line(failed.traceback.strip().rpartition("\n")[2])
        self.books.account.again(failed.work, failed.step, [failed.node()], member.rank, f"it raised: {raised}")
        what = f"{at.named([failed.node()])} on {member.named()}"
        if is_second:
            return Failure(text=f"{what} raised, as it did before:\n{indented(failed.traceback)}")
        return f"{what} raised, and is tried once more:\n{indented(failed.traceback)}"

    def diverged(self, event: events.LossDiverged) -> Failure | None:
        """Return the run's failure where a loss or gradient is not finite, None where it is not of this round."""
        member, diverged, at = self.roster.members.get(event.peer), event.diverged, self.books.round
        if member is None or (diverged.work, diverged.step) != (at.work, at.step):
            return None
        held = self.books.pieces.holding(member.rank)
        if not any(one.node.lo <= diverged.micro_batch < one.node.hi for one in held):
            return None  # it was not asked: others have computed it, or will
        if diverged.work == "audit":
            # The first one found it finite: this is no fault of the model's.
            text = self.books.audit.divergence(member, diverged)
            return Failure(text=text) if text else None
        who = member.named() if diverged.quantity == "gradient" else ""
        text = diverged_text(diverged.work, diverged.step, diverged.micro_batch, diverged.layer, diverged.quantity, who)
        return Failure(text=text, is_diverged=True)
