"""Run another program that makes training steps on request: the PyTorch baseline, or a single process of ours."""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lockstep.common.errors import RunError, UsageError
from lockstep.common.runtime.environment import child_environment

#: Seconds that a process has to finish its steps and end.
GRACE_S = 10.0


class Answer(msgspec.Struct, frozen=True):
    """The answer of a process about its steps."""

    version: str
    seconds: list[float]
    peak_rss_bytes: int


@dataclass
class Stepper:
    """A process that makes steps on request, and ends when its standard input closes."""

    name: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, command: Sequence[str]) -> "Stepper":
        """Start the process. Raises OSError if there is no such program."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
            # Ctrl-C in a terminal reaches the whole foreground group; this process ends with us, without a traceback.
            start_new_session=True,
        )
        return cls(name, process)

    def ask(self, count: int) -> None:
        """Request `count` steps."""
        assert self.process.stdin is not None
        try:
            print(count, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._death() from None

    def answer(self) -> Answer:
        """Wait for the requested steps. Raises RunError if the process has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._death()
        return msgspec.json.decode(line, type=Answer)

    def steps(self, count: int) -> Answer:
        """Make `count` steps, and wait for them."""
        self.ask(count)
        return self.answer()

    def close(self, grace_s: float = GRACE_S) -> None:
        """End the process and all that it has started, by force if it does not end in time."""
        try:
            self.process.communicate(timeout=grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()

    def _death(self) -> RunError:
        return RunError(f"{self.name} died with exit code {self.process.wait()}: its last output is above")


def all_at_once(steppers: Sequence[Stepper], count: int) -> list[Answer]:
    """Make `count` steps in all processes at the same time."""
    for stepper in steppers:
        stepper.ask(count)
    return [stepper.answer() for stepper in steppers]


#: No module next to it may have a name of the standard library: a script finds the modules of its folder first.
SCRIPT = Path(__file__).with_name("torch_baseline.py")


@dataclass
class Baseline:
    """One process of the PyTorch baseline, or the first of a group of them."""

    layout: str
    stepper: Stepper

    @classmethod
    def start(cls, python: Path, arguments: Sequence[str], layout: str = "contiguous") -> "Baseline":
        """Start the baseline under `python`. Raises UsageError if there is no such program."""
        flags = ["--channels-last"] if layout == "channels-last" else []
        try:
            stepper = Stepper.start("the PyTorch baseline", [str(python), str(SCRIPT), *arguments, *flags])
        except OSError as error:
            raise UsageError(
                f"cannot run --peer-python {str(python)!r}: {error.strerror}: expected the Python of an environment "
                "with torch (pip install torch)"
            ) from error
        return cls(layout, stepper)

    def steps(self, count: int) -> Answer:
        """Make `count` steps, and wait for them. Raises RunError if the process has died."""
        try:
            return self.stepper.steps(count)
        except RunError as error:
            raise RunError(f"{error}; is torch installed in its environment?") from error

    def close(self) -> None:
        """End the process."""
        self.stepper.close()


def layouts_of(model: str) -> tuple[str, ...]:
    """Return the memory layouts in which to try the baseline; the faster one counts.

    A module of the user's own is the very same one that we train, and so is its layout.
    """
    return ("contiguous", "channels-last") if model in ("lenet", "cnn") else ("contiguous",)
