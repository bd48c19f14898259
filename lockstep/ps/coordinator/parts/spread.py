"""Lets each host hold a slice of the weights, if that makes steps shorter: this part of the run ends, to be resumed so.

It does not know where the servers are: it is told how many there could be, and measures steps. Pure.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median

from lockstep.common.errors import FailureKind
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect
from lockstep.ps.run.progress import StepTime

#: Seconds for which the servers that are there have been the same before the weights are divided among them.
SETTLE_S = 1.0

#: Steps that are not measured, because they are slower, and those that are.
FIRST_STEPS, MEASURED_STEPS = 4, 8

#: Share of a step that has to be saved, and seconds that it takes to continue the run with other servers.
LEAST_SHARE, CHANGE_S = 0.1, 1.0

#: Seconds of an exchange that more servers do not make shorter.
LATENCY_S = 1e-3


def saved_s(times: Sequence[StepTime], servers: int, available: int) -> float:
    """Return the seconds of a step that another number of servers saves; 0 if it is not worth a change.

    Sums and weights of all hosts go through the servers, so that what a step takes besides computing is divided by the
    number of servers, as long as there are not more of them than hosts.
    """
    step_s = median(time.round_s for time in times)
    exchange_s = median(time.round_s - time.slowest_s for time in times)
    saved = max(0.0, exchange_s - LATENCY_S) * (1.0 - servers / available)
    return saved if saved > LEAST_SHARE * step_s else 0.0


class SpreadServers:
    """Divides the weights among all servers that are there, as the options of the run say."""

    def __init__(self, core: Coordinator, *, settle_s: float = SETTLE_S) -> None:
        self._core = core
        self._settle_s = settle_s
        self._times = deque[StepTime](maxlen=MEASURED_STEPS)
        #: The number of servers that there could be, and since when.
        self._available, self._since = core.info.options.servers, 0.0
        #: Steps of the run, as they were seen last, and before which none is measured.
        self._seen = core.progress.steps
        self._first = core.progress.steps + FIRST_STEPS
        if core.info.options.spread != "never":
            core.hooks.events[events.ServersAvailable] = self._on_available
            core.hooks.after.append(self._decide)

    def _on_available(self, event: events.ServersAvailable, now: float) -> list[Effect]:
        if event.servers != self._available:
            self._available, self._since = event.servers, now
        return []

    def _decide(self, now: float) -> list[Effect]:
        """End this part of the run if it is to be continued with all servers that are there."""
        core, options = self._core, self._core.info.options
        if core.progress.steps == self._seen:
            return []
        self._seen = core.progress.steps
        if self._seen > self._first:
            self._times.append(core.progress.last_step)
        if self._available <= options.servers or now < self._since + self._settle_s:
            return []
        why = "as --spread always asks" if options.spread == "always" else self._why()
        if not why:
            return []
        reason = f"{self._available} hosts hold a slice of the weights each, {why}"
        drain = events.DrainRequested(reason=reason, kind=FailureKind.SPREAD, servers=self._available)
        return core.hooks.events[events.DrainRequested](drain, now)

    def _why(self) -> str:
        """Return the reason to have more servers, by the last steps; empty without one."""
        core, times = self._core, [*self._times]
        if len(times) < MEASURED_STEPS:
            return ""
        # Each decision is made by steps of its own: one that takes long for another reason is not seen twice.
        self._times.clear()
        saved = saved_s(times, core.info.options.servers, self._available)
        if saved * (core.info.plan.total_steps - self._seen) <= CHANGE_S:
            return ""
        step_s = median(time.round_s for time in times)
        return f"so that a step of {1e3 * step_s:.0f} ms takes about {1e3 * saved:.0f} ms less"
