"""The orderly end of a part of a run, which a standby continues, or this server with other servers. Pure."""

from lockstep.common.errors import FailureKind
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect, Finish
from lockstep.ps.coordinator.transitions import UNDER_WAY, RunPhase


class HandOver:
    """Ends this part of the run after a step, so that another one continues it."""

    def __init__(self, core: Coordinator) -> None:
        self._core = core
        #: The end of this part, after the current step: no work is leased any more. None if it is not to end.
        self.drained: events.DrainRequested | None = None
        #: The first step whose update came after that was asked for: with it, the slices of all servers are gathered.
        self.drained_at = 0
        hooks = core.hooks
        hooks.events[events.DrainRequested] = self._on_drain
        hooks.ends.append(lambda: self.drained is not None)
        hooks.holds.append(self._holds)
        hooks.after.append(self._end)

    def _on_drain(self, event: events.DrainRequested, now: float) -> list[Effect]:
        if self.drained is not None and event.kind is not FailureKind.HANDED_OVER:
            return []
        # An update that is under way has not been told to gather anything.
        is_late = self._core.phase is RunPhase.UPDATING
        self.drained = event
        self.drained_at = self._core.round.step + is_late
        return []

    def _is_drained(self) -> bool:
        """Tell whether no work is to be leased any more.

        If there are several servers, their slices are gathered with the next update, which is still made if workers are
        there to compute it. Otherwise, the steps since the last checkpoint are computed again.
        """
        core = self._core
        is_waiting = core.phase in (RunPhase.AWAITING_SERVERS, RunPhase.AWAITING_WORKERS)
        is_last = core.info.options.servers == 1 or core.round.step > self.drained_at
        return self.drained is not None and (is_last or is_waiting or not core.membership.ready())

    def _holds(self) -> bool:
        return self._is_drained() and self._core.round.work != "audit"  # without it, the step could not be applied

    def _end(self, now: float) -> list[Effect]:
        """End here, to be continued, once no worker computes anything of the current step."""
        drained, core = self.drained, self._core
        if drained is None or not self._is_drained() or core.phase in UNDER_WAY or core.leases.held:
            return []
        core.phase = RunPhase.FAILED
        return [Finish(failure=drained.reason, kind=drained.kind, servers=drained.servers)]
