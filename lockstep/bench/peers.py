"""Processes that make training steps on request: the PyTorch baseline, or a single process of ours."""

import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lockstep.common.errors import RunError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.model.source import is_torch_module, open_model
from lockstep.common.nn.models import MODELS
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.environment import BLAS_THREAD_VARIABLES, child_environment, cores, keep_to_core
from lockstep.runs.job_file import to_toml

#: Steps before anything is measured: buffers are made and caches filled.
WARM_UP = 20

#: Steps at the beginning of a turn that do not count, because the caches still hold the other's data.
FIRST = 3

#: Seconds that a process has to finish its steps and end.
GRACE_S = 10.0

#: The memory layouts of PyTorch's arrays.
CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels-last"

#: The expected Python of the baseline.
NEEDED = "expected the Python of an environment with torch (pip install torch numpy)"

#: Advice if no comparison with PyTorch was asked for.
ADVICE = "to compare with PyTorch, add --peer-python PYTHON: the Python of an environment with torch"

#: No module next to it may have a name of the standard library: a script finds the modules of its folder first.
BASELINE = Path(__file__).with_name("torch_baseline.py")


class Answer(msgspec.Struct, frozen=True):
    """The answer of a process about its steps."""

    version: str = ""
    seconds: list[float] = []
    peak_rss_bytes: int = 0
    #: Why it can make no steps; then it has nothing else to answer.
    obstacle: str = ""


@dataclass
class Stepper:
    """A process that makes steps on request, and ends when its standard input closes."""

    name: str
    process: subprocess.Popen[str]
    #: The memory layout of its arrays, if it is the baseline.
    layout: str = ""
    #: Its threads.
    threads: int = 1
    #: The answer to its first steps, which do not count.
    warm_up: Answer = field(default_factory=Answer)
    #: The answers of all turns, without the steps that do not count.
    turns: list[Answer] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, command: Sequence[str], layout: str = "", threads: int = 1) -> "Stepper":
        """Start the process. Raises OSError if there is no such program."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**child_environment(), **dict.fromkeys(BLAS_THREAD_VARIABLES, str(threads))},
            # Ctrl-C in a terminal reaches the whole foreground group; this process ends with us, without a traceback.
            start_new_session=True,
        )
        return cls(name, process, layout, threads)

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
        return RunError(f"{self.name} died with exit code {code}: its last output is above")


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
    job_file.write_text(to_toml(job, RunOptions(workers=0)), encoding="utf-8")
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


class BaselineSubject(msgspec.Struct, frozen=True, kw_only=True):
    """The model and data of the baseline, as on its command line."""

    model: str
    #: A file with samples for a user's module; empty for random images.
    data: str = ""

    def arguments(self, mode: str, batch: int, *more: str) -> list[str]:
        """Return the arguments of a mode that trains."""
        return [mode, self.model, str(batch), *more, *(["--data", self.data] if self.data else [])]

    def layouts(self) -> tuple[str, ...]:
        """Return the memory layouts in which to try the baseline; the faster one counts.

        A dense net has no other one. For a user's module, both are tried.
        """
        return (CONTIGUOUS,) if self.model in ("linear", "mlp") else (CONTIGUOUS, CHANNELS_LAST)


def start_baseline(python: Path, arguments: Sequence[str], stack: ExitStack, layout: str, threads: int) -> Stepper:
    """Start the baseline under `python` until the stack is closed. Raises UsageError if there is no such program."""
    flags = ["--channels-last"] if layout == CHANNELS_LAST else []
    flags += ["--threads", str(threads)] if threads > 1 else []
    command = [str(python), str(BASELINE), *arguments, *flags]
    try:
        baseline = Stepper.start("the PyTorch baseline", command, layout, threads)
    except OSError as error:
        raise UsageError(f"cannot run --peer-python {str(python)!r}: {error.strerror}: {NEEDED}") from error
    stack.callback(baseline.close)
    return baseline


def warm_up(baseline: Stepper) -> str:
    """Let it make its first steps; return why it cannot make any, empty if it can."""
    (baseline.warm_up,) = steps_of([baseline], WARM_UP)
    return baseline.warm_up.obstacle


def start_baselines(
    python: Path | None,
    arguments: Sequence[str],
    stack: ExitStack,
    layouts: Sequence[str] = (CONTIGUOUS,),
    threads: int = 1,
) -> list[Stepper]:
    """Start the baseline under `python` in each memory layout, until the stack is closed, and warm it up.

    Without `python`, none is started. A net that cannot be trained in channels-last is left out. Raises UsageError if
    there is no such program, or if it lacks a package.
    """
    if python is None:
        return []
    # All at once, because PyTorch takes seconds to load.
    started = [start_baseline(python, arguments, stack, layout, threads) for layout in layouts]
    obstacles = [warm_up(baseline) for baseline in started]
    if obstacles[0]:
        raise UsageError(f"--peer-python {str(python)!r}: {obstacles[0]}: {NEEDED}")
    return [baseline for baseline, obstacle in zip(started, obstacles, strict=True) if not obstacle]


def python_for(model: str, given: Path | None) -> Path | None:
    """Return the Python under which the baseline trains a model, None if there is no baseline.

    A module of PyTorch is trained under our own Python, and so it can be by the baseline. Raises UsageError for another
    model that the baseline does not have.
    """
    if model in MODELS:
        return given
    if is_torch_module(open_model(model, 0).module):
        return given or Path(sys.executable)
    if given is not None:
        raise UsageError(
            f"the PyTorch baseline has no model {model!r}: expected one of {', '.join(MODELS)}, or a function that "
            "returns a torch.nn.Module"
        )
    return None


def start_whole_machine(
    python: Path | None,
    subject: BaselineSubject,
    batch: int,
    stack: ExitStack,
    *,
    is_compiling: bool,
    say: Callable[[str], None],
) -> tuple[list[Stepper], list[Stepper]]:
    """Start PyTorch in one process with all threads on a batch, as it is, and by `torch.compile` where that works.

    Most people would use one of the two first. Each takes its turns by itself, because it needs the whole machine.
    To compile takes a quarter of a minute, so it is done only in the layout that was faster without it in the warm-up.
    """
    arguments = subject.arguments("step", batch)
    plain = start_baselines(python, arguments, stack, subject.layouts(), cores())
    compiled = list[Stepper]()
    if python is not None and is_compiling:
        layout = min(plain, key=lambda each: statistics.median(each.warm_up.seconds[FIRST:])).layout
        stepper = start_baseline(python, [*arguments, "--compile"], stack, layout, cores())
        if obstacle := warm_up(stepper):
            say(f"torch.compile is left out: {obstacle}")
        else:
            compiled.append(stepper)
    return plain, compiled


class BaselineRow(msgspec.Struct, frozen=True, kw_only=True):
    """The baseline in its faster memory layout, measured in turns with ours."""

    version: str
    layout: str
    #: Of each of its processes.
    threads: int = 1
    #: Of as many steps as ours, and taken from them in the same way; and the fastest and the slowest turn.
    ms_per_step: float
    ms_spread: tuple[float, float] = (0.0, 0.0)
    images_per_s: float
    #: Of its first process; 0 in rows of a scaling bench that did not know it yet.
    peak_rss_mb: float = 0.0
    #: The baseline's time over ours, above 1 if we are faster: the median of the ratios of all turns; their range.
    ratio: float
    ratio_spread: tuple[float, float] = (0.0, 0.0)


def faster(
    baselines: Sequence[Stepper],
    step_s: Callable[[Sequence[float]], float],
    ours: Sequence[Sequence[float]],
    global_batch: int,
) -> BaselineRow | None:
    """Return the baseline in its faster layout next to the seconds of our steps, by turns; None without a baseline.

    `step_s` gives the seconds of a step in a turn. A ratio is taken within each turn, because a machine is often slower
    in one turn than in another, and then for both.
    """
    if not baselines:
        return None
    baseline = min(baselines, key=lambda each: statistics.median_high(map(step_s, each.seconds())))
    theirs = [step_s(turn) for turn in baseline.seconds()]
    ratios = [their_s / step_s(turn) for their_s, turn in zip(theirs, ours, strict=True)]
    middle_s = statistics.median_high(theirs)
    return BaselineRow(
        version=baseline.turns[-1].version,
        layout=baseline.layout,
        threads=baseline.threads,
        ms_per_step=middle_s * 1e3,
        ms_spread=(min(theirs) * 1e3, max(theirs) * 1e3),
        images_per_s=global_batch / middle_s,
        peak_rss_mb=baseline.turns[-1].peak_rss_bytes / 1e6,
        ratio=statistics.median(ratios),
        ratio_spread=(min(ratios), max(ratios)),
    )
