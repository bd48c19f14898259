"""The description of a run for a person while it is under way. Pure."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lockstep.common.files.sanitize import one_line
from lockstep.common.job.metrics import Score
from lockstep.common.protocol.messages import HISTORY_LIMIT, NAME_LIMIT, OF_A_STEP, Status, WorkerStatus, shortened
from lockstep.ps.coordinator.membership import Membership, MemberState
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round
from lockstep.ps.run.progress import Progress

#: Seconds between two reminders of what the run waits for.
REMINDER_S = 5.0


def status_of(
    info: RunInfo,
    progress: Progress,
    phase: RunPhase,
    at: Round,
    now: float,
    workers: list[WorkerStatus],
    failure: str = "",
    waiting: str = "",
) -> Status:
    """Return the status of a run at `now` seconds, in the round `at`."""
    plan = info.plan
    step, is_between = at.step, at.work not in OF_A_STEP or phase is RunPhase.FINISHED
    score, loss = progress.score(progress.epoch), progress.epoch.loss
    if not progress.epoch.count and progress.history:
        # Between two epochs, and at the end: the figures of the last one, and not zeros.
        last = progress.history[-1]
        score, loss = Score(last.accuracy, last.r2), last.loss
    return Status(
        run=one_line(info.run, NAME_LIMIT),
        model=one_line(info.job.model_name(), NAME_LIMIT),
        phase=phase.value,
        epoch=plan.epoch_of(step - 1 if is_between else step),
        epochs=plan.epochs,
        step=step,
        steps=plan.total_steps,
        loss=loss,
        accuracy=score.accuracy,
        r2=score.r2,
        images_per_s=progress.images_per_s(),
        elapsed_s=progress.elapsed(now),
        eta_s=progress.eta_s(plan.samples(info.training_samples, info.job.global_batch)),
        min_workers=info.options.least_workers(),
        waiting=shortened(waiting),
        workers=workers,
        history=progress.history[-HISTORY_LIMIT:],
        failure=shortened(failure),
    )


def waiting_text(phase: RunPhase, membership: Membership, info: RunInfo, parts: Iterable[Callable[[], str]]) -> str:
    """Return what a run waits for, as a part of its coordinator says, or which workers; empty if it does not wait."""
    if text := next(filter(None, (waits() for waits in parts)), ""):
        return text
    if phase in (RunPhase.AWAITING_SERVERS, RunPhase.FINISHED, RunPhase.FAILED):
        return ""  # of servers, the shard group says so
    if phase is RunPhase.AWAITING_WORKERS:
        return f"waiting for workers: {membership.processes_prepared()} of {info.options.least_workers()} are ready"
    return "" if membership.count(MemberState.READY) else "waiting for a worker: none is left"


@dataclass
class Reminder:
    """Due as soon as the run waits, and every few seconds for as long as it does."""

    #: When to remind next; None while the run does not wait. It begins with waiting.
    due: float | None = -math.inf

    def is_due(self, now: float, *, is_waiting: bool) -> bool:
        """Tell whether to remind now; if so, it is taken as done."""
        if not is_waiting:
            self.due = None
            return False
        if self.due is not None and now < self.due:
            return False
        self.due = now + REMINDER_S
        return True
