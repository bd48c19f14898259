"""Handles workers that fail: leases that raise, values that are not finite, results that cannot be true. Pure.

Also of workers that are late or silent. Gradients have to be believed, or audited. Figures that follow from the job
alone do not: the step's sums are divided by the counts, and a wrong one would change all weights.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind, RemoteProtocolError
from lockstep.common.files.sanitize import indented, one_line
from lockstep.common.numerics.sums import first_not_finite
from lockstep.common.protocol.messages import (
    OF_A_STEP,
    ComputeFailed,
    Diverged,
    Ping,
    Quantity,
    Result,
    Work,
)
from lockstep.common.statemachine.machine import Received
from lockstep.ps.coordinator.effects import Effect, ForgetWorker, Report
from lockstep.ps.coordinator.events import PROGRESS, PartFailed
from lockstep.ps.coordinator.membership import Member, Membership, MemberState
from lockstep.ps.coordinator.scheduling.round_state import RoundState
from lockstep.ps.coordinator.scheduling.stragglers import StragglerMonitor
from lockstep.ps.records.ledger import WorkerOut
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import EVALUATIONS, Round

#: Shares of a step that are named.
MOST_SHARES = 16


# Leases that fail


def lease_failed(member: Member, failed: ComputeFailed, state: RoundState) -> PartFailed | Report | None:
    """Record a lease that raised; return the run's failure or a report, None if the lease had ended."""
    at, lease = state.round, state.leases.numbered(member.rank, failed.number)
    if lease is None:
        return None
    is_second = state.leases.record_failure(lease)
    raised = one_line(failed.traceback.strip().rpartition("\n")[2])
    state.account.record_recomputed(at.work, at.step, [lease.node], member.rank, f"it raised: {raised}")
    what = f"{at.named([lease.node])} on {member.named()}"
    if is_second:
        text = f"{what} raised, as it did before:\n{indented(failed.traceback)}"
        return PartFailed(text=text, kind=FailureKind.COMPUTE)
    return Report(text=f"{what} raised, and is tried once more:\n{indented(failed.traceback)}")


def diverged_by(member: Member, found: Diverged, at: Round) -> str:
    """Describe that a loss or gradient of a member is not finite."""
    who = member.named() if found.quantity == "gradient" else ""
    return diverged_text(at.work, at.step, found.micro_batch, found.layer, found.quantity, who)


def is_asked(member: Member, found: Diverged, state: RoundState) -> bool:
    """Tell whether a worker was asked for a micro-batch that no other worker has computed meanwhile."""
    lease = state.leases.numbered(member.rank, found.number)
    return lease is not None and lease.node.lo <= found.micro_batch < lease.node.hi


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
    named = ", ".join(f"{Node(lo, hi)} by {who}" for lo, hi, who in shares[:MOST_SHARES])
    more = f" and {len(shares) - MOST_SHARES} more" if len(shares) > MOST_SHARES else ""
    where = f", first of {parameter!r}," if parameter else ""
    return (
        f"the weights{where} after step {step} are not finite, although every loss was; they were updated from "
        f"micro-batches {named}{more}. "
        f"Compute one again with `lockstep replay RUN --step {step} --micro-batch M`: if its gradient is not finite, "
        "lower the learning rate or clip (--lr, --clip-norm); if it is, its worker sent something else"
    )


# Workers that are late


class LateWorker(msgspec.Struct, frozen=True):
    """A worker that is late, with what it held and for how many seconds it has brought nothing."""

    member: Member
    released: list[Node]
    held_s: float


def expire_leases(
    state: RoundState, membership: Membership, stragglers: StragglerMonitor, now: float
) -> list[LateWorker]:
    """Release the leases of workers that are late: dead, hung or slow. Their answers may still be the first."""
    late = dict.fromkeys([*state.leases.deadlines.due(now), *stragglers.withdrawals.deadlines.due(now)])
    return [_expire(rank, state, membership, stragglers, now) for rank in late]


def _expire(
    rank: int, state: RoundState, membership: Membership, stragglers: StragglerMonitor, now: float
) -> LateWorker:
    member, held_s = membership.holder(rank), stragglers.record_late(rank, now)
    released = state.release(rank, f"it had sent nothing for {held_s:.1f} s", now)
    stragglers.withdrawals.remove(rank)
    membership.set_state(member, MemberState.SUSPECT)
    return LateWorker(member, released, held_s)


def report_late(late: LateWorker, state: RoundState, stragglers: StragglerMonitor) -> Report:
    """Return the report of a late worker, once its micro-batches are leased again."""
    who, rank, held_s = late.member.named(), late.member.rank, late.held_s
    if not late.released:
        return Report(text=f"{who} has sent nothing for {held_s:.1f} s: others have computed its micro-batches")
    takers = sorted({taker for node in late.released for taker in state.leases.holders(node)})
    median_s = stragglers.timeouts.median_s(rank, state.round.work)
    usual = "" if median_s is None else f" (median {median_s:.2g} s per micro-batch)"
    workers = f"worker{'s' * (len(takers) > 1)} {', '.join(map(str, takers))}"
    again = f"leased again to {workers}" if takers else "to be leased again as soon as a worker is free"
    return Report(text=f"{who} has held {state.round.named(late.released)} for {held_s:.1f} s{usual}: {again}")


def evict(state: RoundState, membership: Membership, stragglers: StragglerMonitor, now: float) -> list[Effect]:
    """Remove workers that have been silent for too long: if one comes back, it has to join again."""
    ranks = stragglers.to_evict(now, has_others=membership.count(MemberState.READY) > 0)
    return [effect for rank in ranks for effect in _evict(rank, state, membership, stragglers, now)]


def _evict(
    rank: int, state: RoundState, membership: Membership, stragglers: StragglerMonitor, now: float
) -> list[Effect]:
    member, silent_s = membership.holder(rank), stragglers.timeouts.held_s(rank, now)
    why = f"it has sent nothing for {silent_s:.1f} s"
    membership.remove(member.peer)
    return [Report(text=f"{member.named()} was evicted: {why}"), _forget(member, why, state, stragglers)]


def worker_left(
    member: Member, reason: str, state: RoundState, stragglers: StragglerMonitor, now: float
) -> list[Effect]:
    """Release what a worker held that has left, and report it."""
    released = state.release(member.rank, f"it left: {reason}", now)
    passed_on = f"; {state.round.named(released)} go to others" if released else ""
    forget = _forget(member, reason, state, stragglers)
    return [Report(text=f"{member.named()} left: {reason}{passed_on}"), forget]


def _forget(member: Member, why: str, state: RoundState, stragglers: StragglerMonitor) -> ForgetWorker:
    state.account.add(WorkerOut(rank=member.rank, why=why))
    state.pending.remove(member.rank)
    stragglers.remove(member.rank)
    return ForgetWorker(rank=member.rank)


def is_back(
    member: Member,
    event: Received,
    state: RoundState,
    membership: Membership,
    stragglers: StragglerMonitor,
    now: float,
) -> bool:
    """Record that a worker is alive: progress extends its leases. Tell whether it is a suspect that gets work again.

    A suspect that says something again and again, but brings nothing, does not.
    """
    message, rank, leases = event.message, member.rank, state.leases
    stragglers.evictions.drop(rank)
    if isinstance(message, PROGRESS) and rank in leases.held:
        # If other servers are not done, the shard group watches those.
        is_pending = state.pending.has(rank)
        own_s = stragglers.timeout_s(rank, state.round.work, leases.held_by(rank))
        leases.extend(rank, now + (stragglers.timeouts.limit_s if is_pending else own_s))
    is_needed = not membership.count(MemberState.READY)
    brings = is_needed or not isinstance(message, Ping) or not stragglers.is_on_probation(rank, now)
    return member.state is MemberState.SUSPECT and brings


# Results that cannot be true


def check_result(result: Result, info: RunInfo) -> None:
    """Raise RemoteProtocolError if a result contradicts the job."""
    if fault := contradiction(result, info):
        raise RemoteProtocolError(fault)


def contradiction(result: Result, info: RunInfo) -> str:
    """Describe how a result contradicts the job, empty if it does not."""
    if result.start is not None and result.work != "train":
        return f"sums with the result of {result.work!r} work: expected them of training only"
    if result.work in OF_A_STEP and len(result.losses) != 4 * max(0, result.hi - result.lo):
        return f"losses of {len(result.losses)} bytes: expected 4 for each of its micro-batches"
    if not math.isfinite(result.loss_sum) or first_not_finite(np.frombuffer(result.losses, "<f4")) is not None:
        return f"a sum of losses that is not finite, {result.loss_sum}: expected a report of that instead"
    samples = _samples(result, info)
    if samples is not None and result.count != (count := samples * info.targets):
        return f"a count of {result.count} for micro-batches {result.node()} of step {result.step}: expected {count}"
    if result.ignored > result.count:
        return f"{result.ignored} of {result.count} targets that are ignored: expected at most as many as there are"
    if result.weight is not None and not 0.0 <= result.weight < math.inf:
        return f"targets that weigh {result.weight}: expected a finite number of at least 0"
    if result.metrics and len(result.metrics) != 8 * info.metric_sums:
        return f"sums of metrics of {len(result.metrics)} bytes: expected {8 * info.metric_sums}"
    if first_not_finite(np.frombuffer(result.metrics, "<f8")) is not None:
        return "a sum of a metric that is not finite: expected finite ones"
    return ""


def _samples(result: Result, info: RunInfo) -> int | None:
    """Return the number of samples in micro-batches of a training step, None if they are not of this run."""
    job, plan = info.job, info.plan
    if result.work not in OF_A_STEP or not 0 <= result.lo < result.hi <= job.micro_batches:
        return None
    start = result.step % plan.steps_per_epoch * job.global_batch
    batch = min(job.global_batch, info.training_samples - start)
    return result.hi * batch // job.micro_batches - result.lo * batch // job.micro_batches
