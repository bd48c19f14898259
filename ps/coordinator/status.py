"""From the books to a `Status`: what a person is told of a run under way. Pure."""

import msgspec

from common.files.sanitize import one_line
from common.protocol.messages import HISTORY_LIMIT, NAME_LIMIT, OF_A_STEP, Status, WorkerStatus, shortened
from ps.coordinator.membership import Membership, MemberState
from ps.coordinator.transitions import RunPhase
from ps.run.info import RunInfo
from ps.run.plan import Round
from ps.run.progress import Progress


def status_of(
    facts: RunInfo,
    progress: Progress,
    phase: RunPhase,
    at: Round,
    now: float,
    workers: list[WorkerStatus],
    failure: str = "",
) -> Status:
    """Return how a run stands at `now` seconds, in the round `at`."""
    plan = facts.plan
    step, is_between = at.step, at.work not in OF_A_STEP or phase is RunPhase.FINISHED
    score = progress.score(progress.epoch)
    return Status(
        run=one_line(facts.run, NAME_LIMIT),
        model=one_line(facts.job.model_name(), NAME_LIMIT),
        phase=phase.value,
        epoch=plan.epoch_of(step - 1 if is_between else step),
        epochs=plan.epochs,
        step=step,
        steps=plan.total_steps,
        loss=progress.epoch.loss,
        accuracy=score.accuracy,
        r2=score.r2,
        images_per_s=progress.images_per_s(),
        elapsed_s=progress.elapsed(now),
        eta_s=progress.eta_s(plan.samples(facts.training_samples, facts.job.global_batch)),
        min_workers=facts.min_workers,
        workers=workers,
        history=progress.history[-HISTORY_LIMIT:],
        failure=shortened(failure),
    )


def with_denials(status: Status, refused: int, broken: int) -> Status:
    """Return a status that also tells of connections that were not let in, and of peers that broke the protocol."""
    return msgspec.structs.replace(status, refused=refused, broken=broken)


def late_text(who: str, what: str, held_s: float, median_s: float | None, takers: list[int]) -> str:
    """Return how a person is told of a worker that is late, and of the ranks to whom its pieces were leased again."""
    usual = "" if median_s is None else f" (median {median_s:.2g} s a piece)"
    workers = f"worker{'s' * (len(takers) > 1)} {', '.join(map(str, takers))}"
    again = f"leased again to {workers}" if takers else "to be leased again as soon as a worker is free"
    return f"{who} holds {what} for {held_s:.1f} s{usual}: {again}"


def waits_for(phase: RunPhase, roster: Membership, facts: RunInfo) -> str:
    """Return for which workers a run waits, empty where it does not."""
    if phase is RunPhase.MUSTERING:
        return ""  # it waits for other servers: the fleet says so
    if phase is RunPhase.GATHERING:
        return f"waiting for workers: {roster.number_prepared()} of {facts.min_workers} are ready"
    return "" if roster.number(MemberState.READY) else "waiting for a worker: none is left"
