"""A process that makes steps when it is asked to, and tells what each took: the peer, or one of ours that is alone."""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from common.errors import RunError
from common.runtime.environment import child_environment

#: Seconds that a process has for the steps at hand and an orderly end.
GRACE_S = 10.0


class Answer(msgspec.Struct, frozen=True):
    """What a process says of the steps that it made."""

    version: str
    seconds: list[float]
    peak_rss_bytes: int


@dataclass
class Stepper:
    """One such process; it ends when its standard input closes."""

    name: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, command: Sequence[str]) -> "Stepper":
        """Start the process; `OSError` where there is no such program."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
            # Ctrl-C in a terminal reaches the whole foreground group: this one is to end with us, without a traceback.
            start_new_session=True,
        )
        return cls(name, process)

    def ask(self, count: int) -> None:
        """Let the process make `count` steps."""
        assert self.process.stdin is not None
        try:
            print(count, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._death() from None

    def answer(self) -> Answer:
        """Wait for the steps; `RunError` where the process has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._death()
        return msgspec.json.decode(line, type=Answer)

    def steps(self, count: int) -> Answer:
        """Let the process make `count` steps while we wait."""
        self.ask(count)
        return self.answer()

    def close(self, grace_s: float = GRACE_S) -> None:
        """End the process, with all that it has started; what does not end by itself is killed."""
        try:
            self.process.communicate(timeout=grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()

    def _death(self) -> RunError:
        return RunError(f"{self.name} died with exit code {self.process.wait()}: its last words are above")


def all_at_once(steppers: Sequence[Stepper], count: int) -> list[Answer]:
    """Let all make `count` steps at the same time."""
    for stepper in steppers:
        stepper.ask(count)
    return [stepper.answer() for stepper in steppers]
