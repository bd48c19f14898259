"""Processes that are not there, for who looks after processes."""

import signal
from dataclasses import dataclass, field
from io import BytesIO

from lockstep.launch.child import WatchedProcess


class Ended:
    """A process that has ended, whose pipes nobody has closed yet."""

    def __init__(self, code: int) -> None:
        self.returncode = code
        self.stdin, self.stdout = BytesIO(), BytesIO()

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        return self.returncode


@dataclass
class Pretended(WatchedProcess):
    """A process that runs until somebody says how it has ended, or asks it to end."""

    ended: int | None = None
    number: int = 4711
    received: list[signal.Signals] = field(default_factory=list)
    #: Whether it ends with exit code 1 if somebody waits for that.
    ends_soon: bool = False

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
        self.ended = -int(signal.SIGKILL) if self.ended is None else self.ended
