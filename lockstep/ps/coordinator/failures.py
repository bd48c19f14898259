"""What becomes of workers that fail: leases that raise, values that are not finite, late and silent workers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind
from lockstep.common.files.sanitize import indented, one_line
from lockstep.common.protocol.messages import ComputeFailed, Diverged, Quantity, Work
from lockstep.ps.coordinator.effects import Effect, ForgetWorker, Report
from lockstep.ps.coordinator.membership import Member, Membership, MemberState
from lockstep.ps.coordinator.scheduling.round_state import RoundState
from lockstep.ps.coordinator.scheduling.stragglers import StragglerMonitor
from lockstep.ps.coordinator.status import late_text
from lockstep.ps.run.plan import EVALUATIONS

#: Shares of a step that are listed.
MOST_SHARES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why the run ends."""

    text: str
    kind: FailureKind


# Leases that fail


def lease_failed(member: Member, failed: ComputeFailed, state: RoundState) -> Failure | Report | None:
    """Record a lease that raised; return the run's failure or what is reported, None if the lease had ended."""
    at = state.round
    if (failed.work, failed.step) != (at.work, at.step):
        return None
    is_second = state.leases.record_failure(failed.node(), member.rank)
    if is_second is None:
        return None
    raised = one_line(failed.traceback.strip().rpartition("\n")[2])
    state.account.record_recomputed(failed.work, failed.step, [failed.node()], member.rank, f"it raised: {raised}")
    what = f"{at.named([failed.node()])} on {member.named()}"
    if is_second:
        return Failure(text=f"{what} raised, as it did before:\n{indented(failed.traceback)}", kind=FailureKind.COMPUTE)
    return Report(text=f"{what} raised, and is tried once more:\n{indented(failed.traceback)}")


def diverged(member: Member, found: Diverged, state: RoundState) -> Failure | None:
    """Return the run's failure if a loss or gradient is not finite, None if it is not of this round."""
    at = state.round
    if (found.work, found.step) != (at.work, at.step):
        return None
    held = state.leases.held_by(member.rank)
    if not any(lease.node.lo <= found.micro_batch < lease.node.hi for lease in held):
        return None  # it was not asked: others have computed it, or will
    if found.work == "audit":
        # The first worker found it finite: this is not the model's fault.
        text = state.audit.divergence(member, found)
        return Failure(text=text, kind=FailureKind.AUDIT) if text else None
    who = member.named() if found.quantity == "gradient" else ""
    text = diverged_text(found.work, found.step, found.micro_batch, found.layer, found.quantity, who)
    return Failure(text=text, kind=FailureKind.DIVERGED)


def diverged_text(
    work: Work, step: int, micro_batch: int, layer: str, quantity: Quantity = "loss", who: str = ""
) -> str:
    """Describe where a value that is not finite was first seen, and what to do.

    `who` computed it, unless that is this process.
    """
    what = "micro-batch" if work == "train" else f"{EVALUATIONS[work]} chunk"
    where = f"layer {layer}" if quantity == "loss" else f"that of {layer!r}"
    by = f" by {who}," if who else ""
    return (
        f"the {quantity} of step {step}, {what} {micro_batch},{by} is not finite; first seen in {where}: "
        "lower the learning rate, warm it up or clip the gradient (--lr, --warmup-steps, --clip-norm)"
    )


def not_finite_text(step: int, parameter: str, shares: Sequence[tuple[int, int, str]]) -> str:
    """Describe which weights are not finite, whose sums led to them, and how to find out which of these are to blame.

    `shares` are `(lo, hi, who)`. The sums are added up by then: only computing a micro-batch again shows what it gave.
    """
    listed = ", ".join(f"{Node(lo, hi)} by {who}" for lo, hi, who in shares[:MOST_SHARES])
    more = f" and {len(shares) - MOST_SHARES} more" if len(shares) > MOST_SHARES else ""
    where = f", first of {parameter!r}," if parameter else ""
    return (
        f"the weights{where} after step {step} are not finite, although every loss was; they were updated from "
        f"micro-batches {listed}{more}. "
        f"Compute one again with `lockstep replay RUN --step {step} --micro-batch M`: if its gradient is not finite, "
        "lower the learning rate or clip (--lr, --clip-norm); if it is, its worker sent something else"
    )


# Workers that are late


@dataclass(frozen=True, slots=True)
class LateWorker:
    """A worker that is late, with what it held and for how many seconds it has brought nothing."""

    member: Member
    released: list[Node]
    held_s: float


def expire_leases(
    state: RoundState, membership: Membership, stragglers: StragglerMonitor, now: float
) -> list[LateWorker]:
    """Take back the leases of workers that are late: dead, hung or slow. Their answers may still be the first."""
    late = dict.fromkeys([*state.leases.expired(now), *stragglers.withdrawals.expired(now)])
    return [_expire(rank, state, membership, stragglers, now) for rank in late]


def _expire(
    rank: int, state: RoundState, membership: Membership, stragglers: StragglerMonitor, now: float
) -> LateWorker:
    member, held_s = membership.by_rank(rank), stragglers.record_late(rank, now)
    released = state.release(rank, f"it had sent nothing for {held_s:.1f} s", now)
    stragglers.withdrawals.remove(rank)
    assert member is not None  # what a member held was released when it left
    membership.set_state(member, MemberState.SUSPECT)
    return LateWorker(member, released, held_s)


def report_late(late: LateWorker, state: RoundState, stragglers: StragglerMonitor) -> Report:
    """Return the report of a late worker, once its micro-batches are leased again."""
    takers = sorted({rank for node in late.released for rank in state.leases.holders(node)})
    median_s = stragglers.timeouts.median_s(late.member.rank, state.round.work)
    if not late.released:
        text = f"{late.member.named()} has sent nothing for {late.held_s:.1f} s: others have computed its micro-batches"
        return Report(text=text)
    what = state.round.named(late.released)
    return Report(text=late_text(late.member.named(), what, late.held_s, median_s, takers))


def evict(state: RoundState, membership: Membership, stragglers: StragglerMonitor, now: float) -> list[Effect]:
    """Remove workers that have been silent for too long: if one comes back, it has to join again."""
    ranks = stragglers.to_evict(now, has_others=membership.count(MemberState.READY) > 0)
    return [effect for rank in ranks for effect in _evict(rank, state, membership, stragglers, now)]


def _evict(
    rank: int, state: RoundState, membership: Membership, stragglers: StragglerMonitor, now: float
) -> list[Effect]:
    member, silent_s = membership.by_rank(rank), stragglers.timeouts.held_s(rank, now)
    assert member is not None
    membership.remove(member.peer)
    state.pending.remove(rank)
    stragglers.remove(rank)
    report = Report(text=f"{member.named()} was evicted: it has sent nothing for {silent_s:.1f} s")
    return [report, ForgetWorker(peer=member.peer, rank=rank)]
