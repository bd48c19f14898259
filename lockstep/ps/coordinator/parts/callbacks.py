"""The pause between two epochs in which callbacks decide whether the run continues. Pure."""

from lockstep.common.protocol.messages import CallbackDecision
from lockstep.common.statemachine.machine import Received
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect
from lockstep.ps.coordinator.transitions import PHASES, RunPhase
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round


def is_paused_before(info: RunInfo, at: Round) -> bool:
    """Tell whether callbacks are asked before a round: that is before each epoch but the first.

    Not after the last one: so a run that resumes from a checkpoint between two epochs asks again.
    """
    begins_epoch = at.work == "train" and at.step > 0 and at.step % info.plan.steps_per_epoch == 0
    return info.options.pause and begins_epoch


class Callbacks:
    """Lets the run wait for callbacks."""

    def __init__(self, core: Coordinator) -> None:
        self._core = core
        core.hooks.begins.append(lambda at, now: RunPhase.PAUSED if is_paused_before(core.info, at) else None)
        core.hooks.events[CallbackDecision] = self._on_decided

    def _on_decided(self, received: Received, now: float) -> list[Effect]:
        """Begin the epoch before which callbacks were asked, or end the run."""
        decision, core = received.message, self._core
        assert isinstance(decision, CallbackDecision)
        if decision.epoch != core.progress.history[-1].epoch:
            return []
        if decision.stops:
            return core.finish()
        core.phase = PHASES[core.round.work]
        core.begin_round(now)
        return core.assign_leases(now)
