"""Slow a worker down from outside, as a busy machine would: stop and continue its process by a duty cycle."""

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lockstep.common.protocol.messages import Status
from lockstep.common.runtime.clock import Clock
from lockstep.launch.chaos import RunProcesses
from lockstep.launch.process_backend import Role


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """How long a process runs, and how long it stands still, again and again."""

    #: Seconds; `still_s` is None if it stands still until the end.
    runs_s: float
    still_s: float | None

    @property
    def speed(self) -> float:
        """The share of the time in which the process runs."""
        return 0.0 if self.still_s is None else self.runs_s / (self.runs_s + self.still_s)


#: Slowdown by a factor, in periods of a few milliseconds; a stall of 40 of every 60 ms; and stopped for good.
PATTERNS = {
    "2": Pattern(runs_s=0.001, still_s=0.001),
    "3": Pattern(runs_s=0.001, still_s=0.002),
    "10": Pattern(runs_s=0.001, still_s=0.009),
    "stall": Pattern(runs_s=0.020, still_s=0.040),
    "stopped": Pattern(runs_s=0.0, still_s=None),
}


@dataclass(frozen=True, kw_only=True)
class DutyCycle:
    """Stops and continues one process until it is told to end."""

    pattern: Pattern
    send: Callable[[signal.Signals], None]
    clock: Clock
    #: Waits for so many seconds, or for ever if None; returns early, and True, once the cycle is to end.
    wait: Callable[[float | None], bool]

    def run(self) -> None:
        """Slow the process down; in the end it runs, whatever happens."""
        due = self.clock.now()
        try:
            while True:
                self.send(signal.SIGSTOP)
                if self.pattern.still_s is None:
                    self.wait(None)
                    return
                due = self._later(due, self.pattern.still_s)
                if self.wait(max(0.0, due - self.clock.now())):
                    return
                self.send(signal.SIGCONT)
                due = self._later(due, self.pattern.runs_s)
                if self.wait(max(0.0, due - self.clock.now())):
                    return
        finally:
            self.send(signal.SIGCONT)

    def _later(self, due: float, by_s: float) -> float:
        """Return the time of the next signal.

        Counted from when the last one was due, so that late wake-ups do not add up; from now if that is so long ago
        that the process would not stand still at all, or not run.
        """
        now = self.clock.now()
        return (due if now - due < by_s else now) + by_s


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The step in which a slowdown began, and the process of the worker."""

    step: int
    pid: int


@dataclass
class Slowdown:
    """Slows the last worker of a run down, from a thread of its own, once the run has made some steps."""

    #: None leaves the worker alone, and only finds the step from which on it would be slow.
    pattern: Pattern | None
    after_steps: int
    clock: Clock
    begun: Begun | None = None
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def on_status(self, status: Status | None, processes: RunProcesses) -> None:
        """Begin if it is time."""
        if self.begun is not None or status is None or status.step < self.after_steps:
            return
        worker = processes[Role.WORKER][-1]
        self.begun = Begun(step=status.step, pid=worker.pid)
        if self.pattern is not None:
            cycle = DutyCycle(pattern=self.pattern, send=worker.send, clock=self.clock, wait=self._end.wait)
            self._thread = threading.Thread(target=cycle.run, name="duty cycle", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Let the worker run as it will."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
