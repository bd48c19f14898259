"""Processes that make training steps on request: the PyTorch baseline, or a single process of ours."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lockstep.common.errors import RunError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.runtime.environment import child_environment, cores, keep_to_core
from lockstep.runs.job_file import to_toml
from lockstep.runs.launch_config import Launch

#: Steps before anything is measured: buffers are made and caches filled.
WARM_UP = 20

#: Steps at the beginning of a turn that do not count, because the caches still hold the other's data.
FIRST = 3

#: Seconds that a process has to finish its steps and end.
GRACE_S = 10.0

#: No module next to it may have a name of the standard library: a script finds the modules of its folder first.
BASELINE = Path(__file__).with_name("torch_baseline.py")


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
    #: The memory layout of its arrays, if it is the baseline.
    layout: str = ""
    #: What the error of its death ends with.
    advice: str = ""
    #: The answers of all turns, without the steps that do not count.
    turns: list[Answer] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, command: Sequence[str], layout: str = "", advice: str = "") -> "Stepper":
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
        return cls(name, process, layout, advice)

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

    def seconds(self) -> list[list[float]]:
        """Return the seconds of the steps that count, a list for each turn."""
        return [turn.seconds for turn in self.turns]

    def close(self, grace_s: float = GRACE_S) -> None:
        """End the process and all that it has started, by force if it does not end in time."""
        try:
            self.process.communicate(timeout=grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()

    def _death(self) -> RunError:
        code = self.process.wait()
        return RunError(f"{self.name} died with exit code {code}: its last output is above{self.advice}")


def steps_of(steppers: Sequence[Stepper], count: int) -> list[Answer]:
    """Make `count` steps in all processes at the same time."""
    for stepper in steppers:
        stepper.ask(count)
    return [stepper.answer() for stepper in steppers]


def in_turns(
    rounds: int, count: int, groups: Sequence[Sequence[Stepper]], first: Callable[[], object] = lambda: None
) -> None:
    """Measure in turns, so that a disturbance of the machine affects all: `first`, then `count` steps of each group.

    The processes of a group make their steps at the same time, after those that do not count.
    """
    for _ in range(rounds):
        first()
        for group in groups:
            for stepper, answer in zip(group, steps_of(group, FIRST + count), strict=True):
                stepper.turns.append(msgspec.structs.replace(answer, seconds=answer.seconds[FIRST:]))


def start_singles(job: Job, count: int, folder: Path, stack: ExitStack) -> list[Stepper]:
    """Start independent processes that make the steps of a job, until the stack is closed, and warm them up."""
    job_file = folder / "single.toml"
    job_file.write_text(to_toml(job, Launch(workers=0)), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "lockstep", "bench", "lone", str(job_file)]
    singles = []
    for number in range(count):
        singles.append(Stepper.start("an independent process", command))
        stack.callback(singles[-1].close)
        if count == cores():
            # As the workers of a cluster are, so that the ceiling is not lower.
            keep_to_core(singles[-1].process.pid, number)
    steps_of(singles, WARM_UP)
    return singles


def start_baselines(
    python: Path | None, arguments: Sequence[str], stack: ExitStack, layouts: Sequence[str] = ("contiguous",)
) -> list[Stepper]:
    """Start the baseline under `python` in each memory layout, until the stack is closed, and warm it up.

    Without `python`, there is none. Raises UsageError if there is no such program.
    """
    baselines = []
    for layout in layouts if python is not None else ():
        flags = ["--channels-last"] if layout == "channels-last" else []
        command, advice = [str(python), str(BASELINE), *arguments, *flags], "; is torch installed in its environment?"
        try:
            baseline = Stepper.start("the PyTorch baseline", command, layout, advice)
        except OSError as error:
            raise UsageError(
                f"cannot run --peer-python {str(python)!r}: {error.strerror}: expected the Python of an environment "
                "with torch (pip install torch)"
            ) from error
        stack.callback(baseline.close)
        steps_of([baseline], WARM_UP)
        baselines.append(baseline)
    return baselines


def layouts_of(model: str) -> tuple[str, ...]:
    """Return the memory layouts in which to try the baseline; the faster one counts.

    A module of the user's own is the very same one that we train, and so is its layout.
    """
    return ("contiguous", "channels-last") if model in ("lenet", "cnn") else ("contiguous",)


class BaselineRow(msgspec.Struct, frozen=True, kw_only=True):
    """The baseline with as many processes in its faster memory layout, measured in turns with ours."""

    version: str
    layout: str
    #: Of as many steps as ours, and taken from them in the same way.
    ms_per_step: float
    images_per_s: float
    #: Of its first process; 0 in rows of a scaling bench that did not know it yet.
    peak_rss_mb: float = 0.0
    #: The baseline's time over ours; above 1 if we are faster.
    ratio: float


def faster(
    baselines: Sequence[Stepper], step_s_of: Callable[[list[list[float]]], float], our_s: float, global_batch: int
) -> BaselineRow | None:
    """Return the baseline in its faster layout, by the seconds of a step in several turns; None without a baseline."""
    if not baselines:
        return None
    step_s, number = min((step_s_of(each.seconds()), number) for number, each in enumerate(baselines))
    baseline = baselines[number]
    return BaselineRow(
        version=baseline.turns[-1].version,
        layout=baseline.layout,
        ms_per_step=step_s * 1e3,
        images_per_s=global_batch / step_s,
        peak_rss_mb=baseline.turns[-1].peak_rss_bytes / 1e6,
        ratio=step_s / our_s,
    )
