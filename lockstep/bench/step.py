"""Bench one training step of one process with one thread, next to the same step in PyTorch."""

import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.table import Table

from lockstep.bench.baseline import Answer, Baseline, layouts_of
from lockstep.bench.reports.rows import BaselineFigures, StepFigures, median_ms
from lockstep.common.autograd.graph import no_grad, observe
from lockstep.common.autograd.primitives.primitive import Primitive
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.dataset import TrainTest
from lockstep.common.errors import RunError
from lockstep.common.job.job import Job
from lockstep.common.model.port import Engine
from lockstep.common.nn.layers.convolution import Conv1d, Conv2d
from lockstep.common.nn.layers.linear import Linear
from lockstep.common.nn.module import Module
from lockstep.common.random import Purpose, generator
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.environment import child_environment
from lockstep.launch.child import ERROR_MARK
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.runs.single_process import SingleProcessTrainer

#: Steps before anything is measured: buffers are made and caches filled.
WARM_UP = 10

#: Steps at the beginning of a turn that do not count, because the caches still hold the other's data.
FIRST = 3

#: Turns in which ours and the baseline alternate, so that a disturbance of the machine affects both.
ROUNDS = 6


@dataclass
class StepBench:
    """Makes the steps of a job in one process, on data that is loaded already."""

    job: Job
    data: TrainTest
    clock: Clock
    trainer: SingleProcessTrainer = field(init=False)
    #: The next step.
    at: int = 0

    def __post_init__(self) -> None:
        self.trainer = SingleProcessTrainer(open_run("bench", self.job, self.data, AdmissionPolicy()))

    def times(self, steps: int) -> list[float]:
        """Make `steps` steps; return the seconds that each took."""
        times = []
        for _ in range(steps):
            start = self.clock.now()
            self.trainer.step(self.at)
            times.append(self.clock.now() - start)
            self.at += 1
        return times

    def flops(self) -> int:
        """Return the operations of the matrix products of one step."""
        images = self.data.train.images[: self.job.global_batch]
        return step_flops(self.trainer.setup.model.module, self.trainer.compute.batches.preparation.images(images))


def measure(bench: StepBench, steps: int, peer_python: Path | None) -> StepFigures:
    """Return the figures of at least `steps` steps, and of as many steps of the baseline, in turns with ours."""
    model, batch = bench.job.model_name(), bench.job.global_batch
    layouts = layouts_of(model) if peer_python else ()
    baselines = [Baseline.start(peer_python, ["step", model, str(batch)], layout) for layout in layouts if peer_python]
    per_turn = FIRST + -(-steps // ROUNDS)
    try:
        bench.times(WARM_UP)
        for baseline in baselines:
            baseline.steps(WARM_UP)
        ours: list[float] = []
        theirs: dict[str, list[Answer]] = {baseline.layout: [] for baseline in baselines}
        for _ in range(ROUNDS):
            ours += bench.times(per_turn)[FIRST:]
            for baseline in baselines:
                theirs[baseline.layout].append(baseline.steps(per_turn))
    finally:
        for baseline in baselines:
            baseline.close()
    peak = gemm_peak(bench.clock)
    ms = median_ms(ours)
    return StepFigures(
        model=model,
        batch=batch,
        micro_batches=bench.job.micro_batches,
        ms_per_step=ms,
        steps=len(ours),
        images_per_s=batch / ms * 1e3,
        peak_rss_mb=peak_rss_bytes() / 1e6,
        gemm_gflops_share=bench.flops() / peak / (ms / 1e3),
        gemm_peak_gflops=peak / 1e9,
        peer=faster_layout(theirs, ms) if baselines else None,
    )


def faster_layout(theirs: dict[str, list[Answer]], our_ms: float) -> BaselineFigures:
    """Return the baseline's figures in its faster layout, so that the comparison is fair."""
    medians = {
        layout: median_ms([second for answer in answers for second in answer.seconds[FIRST:]])
        for layout, answers in theirs.items()
    }
    layout = min(medians, key=lambda each: medians[each])
    last = theirs[layout][-1]
    return BaselineFigures(
        version=last.version,
        layout=layout,
        ms_per_step=medians[layout],
        peak_rss_mb=last.peak_rss_bytes / 1e6,
        ratio=medians[layout] / our_ms,
    )


def profile(bench: StepBench, steps: int) -> Table:
    """Return a table of where the time of a step goes; its caption tells how micro-batches are computed otherwise.

    Steps with and without the observer alternate, so that a disturbance of the machine affects both.
    """
    bench.times(WARM_UP)
    observer, plain, per_turn = Profile(bench.clock), list[float](), -(-steps // ROUNDS)
    for _ in range(ROUNDS):
        plain += bench.times(per_turn)
        with observe(observer):
            bench.times(per_turn)
    table = observer.table(len(plain), statistics.mean(plain))
    table.caption, table.caption_justify = caption(bench.trainer.compute.engine), "left"
    return table


def caption(engine: Engine) -> str:
    """Return a sentence on whether micro-batches are computed in one pass, which an observer cannot see."""
    obstacle = engine.obstacle
    if obstacle is None:
        return "observed one micro-batch at a time; otherwise as many in one pass as stay in cache"
    return f"always one micro-batch at a time: {obstacle}"


def peak_rss_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


#: Side of the square product that measures the peak: large enough to be bound by arithmetic only.
PEAK_SIDE = 1024

#: How often the peak is measured; the best counts.
PEAK_TRIES = 10


def step_flops(model: Module, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> int:
    """Return the floating-point operations of all matrix products of forward and backward on `images`.

    Each layer multiplies once forward, once for the gradient of its weights, and once for the gradient of its input,
    which the first layer does not need.
    """
    forward = list(_forward_flops(model, images))
    return 3 * sum(forward) - (forward[0] if forward else 0)


def _forward_flops(model: Module, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Iterator[int]:
    outputs: list[tuple[Module, tuple[int, ...]]] = []
    with no_grad(), model.observe_outputs(lambda _, module, output: outputs.append((module, output.shape))):
        model(Tensor(images))
    for module, shape in outputs:
        if isinstance(module, Linear | Conv1d | Conv2d):
            # For each output value, the weights (out, ...) below `out` are read once: 2 operations each.
            yield 2 * int(np.prod(shape)) * int(np.prod(module.weight.shape[1:]))


def gemm_peak(clock: Clock) -> float:
    """Return the floating-point operations per second of a large float32 product, the best of several."""
    rng = generator(0, Purpose.CANARY)
    left, right = (rng.standard_normal((PEAK_SIDE, PEAK_SIDE), dtype=np.float32) for _ in range(2))
    product = np.empty_like(left)
    best = float("inf")
    for _ in range(PEAK_TRIES):
        start = clock.now()
        np.matmul(left, right, out=product)
        best = min(best, clock.now() - start)
    return 2.0 * PEAK_SIDE**3 / best


@dataclass
class ProfileShare:
    """The costs of one primitive in one direction."""

    seconds: float = 0.0
    calls: int = 0
    #: Size of the arrays that went in and came out.
    bytes: int = 0


@dataclass
class Profile:
    """An observer of the autograd engine that adds up the costs of each primitive."""

    clock: Clock
    shares: dict[tuple[str, str], ProfileShare] = field(default_factory=dict)

    def __call__(
        self, primitive: Primitive, direction: str, function: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """Call the function, and record its time and its arrays."""
        start = self.clock.now()
        result = function(*args, **options)
        share = self.shares.setdefault((primitive.name, direction), ProfileShare())
        share.seconds += self.clock.now() - start
        share.calls += 1
        share.bytes += sum(each.nbytes for each in (*args, result) if isinstance(each, np.ndarray))
        return result

    def table(self, steps: int, step_s: float) -> Table:
        """Return the primitives of an average step of `step_s` seconds, the most expensive first."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("primitive", "direction", "calls", "µs", "share", "MB"):
            table.add_column(heading, justify="left" if heading in ("primitive", "direction") else "right")
        rows = sorted(self.shares.items(), key=lambda item: -item[1].seconds)
        for (name, direction), share in rows:
            seconds = share.seconds / steps
            figures = (f"{seconds * 1e6:,.1f}", f"{seconds / step_s:.1%}", f"{share.bytes / steps / 1e6:.2f}")
            table.add_row(name, direction, f"{share.calls / steps:g}", *figures)
        rest = step_s - sum(share.seconds for share in self.shares.values()) / steps
        table.add_row("everything else", "", "", f"{rest * 1e6:,.1f}", f"{rest / step_s:.1%}", "")
        return table


def figures_of(
    models: Sequence[str], batches: Sequence[int], cuts: Sequence[int], flags: Sequence[str]
) -> Iterator[StepFigures]:
    """Yield the figures of each model at each batch, cut into each number of micro-batches.

    Each is from a process of its own, so that its peak memory is too.

    `flags` are those of `bench step` for all.
    """
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        for model, batch, cut in product(models, batches, cuts):
            yield _measured(model, batch, ["--micro-batches", str(cut), *flags], Path(folder) / "figures.json")


def _measured(model: str, batch: int, flags: Sequence[str], file: Path) -> StepFigures:
    command = [sys.executable, "-P", "-m", "lockstep", "bench", "step", "--model", model, "--batch", str(batch)]
    done = subprocess.run(
        [*command, *flags, "--to", str(file)], capture_output=True, check=False, env=child_environment()
    )
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise RunError(f"{model} at batch {batch}: {text.removeprefix(ERROR_MARK)}")
    (figures,) = msgspec.json.decode(file.read_bytes(), type=list[StepFigures])
    return figures
