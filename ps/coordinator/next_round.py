"""What follows a round: the next one, a pause, or the end. Pure."""

from collections.abc import Sequence

from common.protocol.messages import EpochStatus
from ps.coordinator.transitions import PHASES, RunPhase
from ps.run.early_stopping import is_stopped
from ps.run.info import RunInfo
from ps.run.plan import Round


def following(facts: RunInfo, done: Round, history: Sequence[EpochStatus]) -> Round | None:
    """Return the round after one that is done, None where the run is over: after its last step, or early."""
    if done.work == "evaluate" and is_stopped(facts.job, history):
        return None
    return facts.plan.after(done)


def phase_in(facts: RunInfo, at: Round) -> RunPhase:
    """Return what the run does when a round begins: callbacks are asked before each epoch but the first.

    Before it, and not after the last: so a run that goes on from a checkpoint between two epochs asks again.
    """
    begins_epoch = at.work == "train" and at.step > 0 and at.step % facts.plan.steps_per_epoch == 0
    return RunPhase.PAUSED if facts.pauses and begins_epoch else PHASES[at.work]
