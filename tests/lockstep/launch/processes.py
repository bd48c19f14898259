"""Processes that are not there, for who looks after processes."""

import signal
from dataclasses import dataclass, field

from lockstep.launch.supervision.channel import ChildReport, EndReport
from lockstep.launch.supervision.child import WatchedProcess


@dataclass
class Pretended(WatchedProcess):
    """A process that runs until somebody says how it has ended, or asks it to end."""

    ended: int | None = None
    number: int = 4711
    received: list[signal.Signals] = field(default_factory=list)
    #: Whether it ends with exit code 1 if somebody waits for that.
    ends_soon: bool = False
    #: What it reports next.
    next_reports: list[ChildReport] = field(default_factory=list)
    #: How long it was waited for when it was ended.
    graces: list[float] = field(default_factory=list)

    def fail(self, text: str) -> None:
        """Report an error."""
        self.next_reports.append(EndReport(text=text))

    def read(self, timeout_s: float | None) -> list[ChildReport]:
        found, self.next_reports = self.next_reports, []
        return found

    @property
    def pid(self) -> int:
        return self.number

    @property
    def code(self) -> int:
        assert self.ended is not None
        return self.ended

    def place(self) -> str:
        return "pid 4711"

    def wait(self, timeout_s: float) -> bool:
        if self.ends_soon and timeout_s:
            self.ended = 1
        return self.ended is not None

    def send(self, number: signal.Signals) -> None:
        if self.ended is None:
            self.received.append(number)
            self.ended = 130

    def end(self, grace_s: float) -> None:
        self.graces.append(grace_s)
        self.ended = -int(signal.SIGKILL) if self.ended is None else self.ended
