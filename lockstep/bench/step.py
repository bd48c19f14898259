"""Bench one training step of one process with one thread, next to the same step in PyTorch."""

import math
import resource
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any, ClassVar, get_args

import click
import msgspec
import numpy as np
from rich.table import Table

from lockstep.bench import parameters as options
from lockstep.bench.bench import Bench, Panel, Series, with_torch
from lockstep.bench.measuring import peers, timed_run
from lockstep.bench.measuring.peers import WARM_UP, Answer, BaselineRow
from lockstep.bench.measuring.timed_run import BenchSession
from lockstep.checking.checkup.machine import measured
from lockstep.cli.options.types import WholeNumber
from lockstep.common.autograd.graph import no_grad, observe
from lockstep.common.autograd.primitives.primitive import Primitive
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import load
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.nn.layers.convolution import Conv1d, Conv2d
from lockstep.common.nn.layers.linear import Linear
from lockstep.common.nn.module import Module
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.runtime.version import VERSION
from lockstep.launch.numerics import begin_with
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.single_process import SingleProcessTrainer

#: Turns in which ours and the baseline alternate.
ROUNDS = 6


class StepFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row: a model at a batch size."""

    model: str
    batch: int
    micro_batches: int
    #: Median over `steps` steps.
    ms_per_step: float
    steps: int
    images_per_s: float
    peak_rss_mb: float
    #: Share of the step that its unavoidable matrix products take at the peak, and that peak.
    gemm_gflops_share: float
    gemm_peak_gflops: float
    peer: BaselineRow | None = None


@dataclass
class LocalSteps:
    """Makes the steps of a job in this process, on data that is loaded already."""

    job: Job
    data: TrainTest
    clock: Clock
    trainer: SingleProcessTrainer = field(init=False)
    #: Those of the steps to come.
    _numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.trainer = SingleProcessTrainer(open_run("bench", self.job, self.data, AdmissionPolicy()))

    def times(self, steps: int) -> list[float]:
        """Make `steps` steps; return the seconds that each took."""
        return timed_run.times_of(lambda: self.trainer.step(next(self._numbers)), steps, self.clock)

    def flops(self) -> int:
        """Return the operations of the matrix products of one step."""
        images = self.data.train.images[: self.job.global_batch]
        return step_flops(self.trainer.setup.model.module, self.trainer.compute.batches.preparation.images(images))


@click.command(hidden=True)
@click.argument("job_file", type=click.Path(path_type=Path))
def lone(job_file: Path) -> None:
    """Make as many steps of the job as each line of standard input says; answer with what each took."""
    job, _ = resolve(read_values(job_file), {})
    local = LocalSteps(job, load(job.data), SystemClock())
    for line in sys.stdin:
        click.echo(msgspec.json.encode(Answer(VERSION, local.times(int(line)), peak_rss_bytes())))


@dataclass(kw_only=True)
class StepBench(Bench[StepFigures]):
    """Time whole training steps: forward, loss, backward, update.

    The bench runs the code of a worker and a server in one process, with one BLAS thread and with MNIST in memory. It
    reports the median over the steps, and with --peer-python the ratio of torch's median to it. Each combination runs
    in a separate process. With several numbers of micro-batches, the last lines compare each speed with that of the
    first number.

    \b
      lockstep bench step --model cnn --batch 32
      lockstep bench step --model mlp --peer-python ~/torch/bin/python
      lockstep bench step --model linear,mlp,lenet,cnn --batch 32,128
      lockstep bench step --model mlp --micro-batches 1,2,4,8,16,32
    """

    name: ClassVar = "step"
    summary: ClassVar = "One training step of one process and one thread."
    row: ClassVar = StepFigures

    models: tuple[str, ...] = options.models("--model", text="models", default="lenet")
    batches: tuple[int, ...] = options.option("--batch", options.NUMBERS, "batch sizes", "128")
    cuts: tuple[int, ...] = options.option("--micro-batches", options.NUMBERS, "micro-batches per step", "1")
    steps: int = options.option("--steps", WholeNumber(30), "steps to measure", "120")
    numerics: Numerics = options.option(
        "--numerics", click.Choice(get_args(Numerics)), "native or portable", "native", metavar="NAME"
    )
    peer_python: Path | None = options.peer_python()
    is_profiling: bool = options.option("--profile", click.BOOL, "show time and bytes per primitive instead", "no")

    def measure(self, session: BenchSession) -> Iterator[StepFigures]:
        begin_with(self.numerics)
        combinations = list(product(self.models, self.batches, self.cuts))
        if self.is_profiling and len(combinations) > 1:
            raise UsageError("--profile: expected one model, one batch size and one number of micro-batches")
        rows = list[StepFigures]()
        for model, batch, cut in combinations:
            # More epochs than are measured, so that none ends early.
            values = {"global_batch": batch, "micro_batches": cut, "numerics": self.numerics, "epochs": 1000}
            job = timed_run.bench_job(model=model, **values)
            local = LocalSteps(job, load(job.data), session.clock)
            if self.is_profiling:
                session.console.print(profile(local, self.steps))
                return
            rows.append(figures_of(local, session.folder, self.steps, self.peer_python))
            yield rows[-1]
        for line in cut_lines(rows) if len(self.cuts) > 1 else ():
            session.say(line)
        if self.peer_python and len(rows) > 1:
            ratio = statistics.geometric_mean(row.peer.ratio for row in rows if row.peer is not None)
            session.say(f"geometric mean of torch / ours: {ratio:.2f}")

    def lines(self, row: StepFigures) -> list[str]:
        cut = f" in {row.micro_batches} micro-batches" if row.micro_batches > 1 else ""
        lines = [
            f"{row.model}, batch {row.batch}{cut}, one thread, median of {row.steps} steps",
            f"step          {row.ms_per_step:.3f} ms, {row.images_per_s:,.0f} images/s",
            f"products      {row.gemm_gflops_share:.0%} of it at the peak of {row.gemm_peak_gflops:.0f} GFLOP/s",
            f"peak memory   {row.peak_rss_mb:.0f} MB",
        ]
        if row.peer is not None:
            torch, size = row.peer, row.peer.peak_rss_mb
            lines += [
                f"torch         {torch.ms_per_step:.3f} ms, torch {torch.version}, {torch.layout}, {size:.0f} MB",
                f"torch / ours  {torch.ratio:.2f}",
            ]
        return lines

    def panels(self, rows: Sequence[StepFigures]) -> list[list[Panel]]:
        """Return a pair of bars per model and batch: the time and memory of a step, ours and the baseline's."""
        names = [f"{row.model}, {row.batch}" for row in rows]
        texts = with_torch([f"{row.images_per_s:,.0f}/s" for row in rows], rows)
        title, pair = "a training step of one process, one thread", _pair(rows, "ms_per_step")
        time = Panel(title, "ms", pair, names, texts, is_grouped=True, is_log=True, end=12)
        pair = _pair(rows, "peak_rss_mb")
        return [[time, Panel("peak memory of the process", "MB", pair, [""] * len(rows), is_grouped=True)]]


def _pair(rows: Sequence[StepFigures], figure: str) -> list[Series]:
    ours = Series("Lockstep", "ours", [getattr(row, figure) for row in rows])
    if all(row.peer is None for row in rows):
        return [ours]
    return [ours, Series("torch, in its faster layout", "torch", [getattr(row.peer, figure, 0.0) for row in rows])]


def cut_lines(rows: Sequence[StepFigures]) -> list[str]:
    """Return, for each model and batch, the speed with each number of micro-batches over that with the first."""
    cuts = list(dict.fromkeys(row.micro_batches for row in rows))
    lines = ["micro-batches  " + "".join(f"{cut:>6}" for cut in cuts)]
    by_place = {(row.model, row.batch): row.ms_per_step for row in rows if row.micro_batches == cuts[0]}
    for (model, batch), first in by_place.items():
        times = [row.ms_per_step for row in rows if (row.model, row.batch) == (model, batch)]
        lines.append(f"{f'{model} {batch}':<15}" + "".join(f"{first / ms:>6.2f}" for ms in times))
    return lines


def figures_of(local: LocalSteps, folder: Path, steps: int, peer_python: Path | None) -> StepFigures:
    """Return the figures of at least `steps` steps, and of as many steps of the baseline, in turns with ours.

    The steps are made in a process of their own, so that its peak memory is theirs.
    """
    model, batch, turn = local.job.model_name(), local.job.global_batch, timed_run.per_turn(steps, ROUNDS)
    with ExitStack() as stack:
        (ours,) = peers.start_singles(local.job, 1, folder, stack)
        baselines = peers.start_baselines(peer_python, ["step", model, str(batch)], stack, peers.layouts_of(model))
        peers.in_turns(ROUNDS, turn, [[each] for each in (ours, *baselines)])
    peak, step_s = measured(local.clock).gflops, timed_run.median_step_s(ours.seconds())
    return StepFigures(
        model=model,
        batch=batch,
        micro_batches=local.job.micro_batches,
        ms_per_step=step_s * 1e3,
        steps=ROUNDS * turn,
        images_per_s=batch / step_s,
        peak_rss_mb=ours.turns[-1].peak_rss_bytes / 1e6,
        gemm_gflops_share=local.flops() / (peak * 1e9) / step_s,
        gemm_peak_gflops=peak,
        peer=peers.faster(baselines, timed_run.median_step_s, step_s, batch),
    )


def profile(local: LocalSteps, steps: int) -> Table:
    """Return a table of where the time of a step goes; its caption tells how micro-batches are computed otherwise."""
    local.times(WARM_UP)
    observer, plain, turn = Profile(local.clock), list[float](), timed_run.per_turn(steps, ROUNDS)
    for _ in range(ROUNDS):
        plain.extend(local.times(turn))
        with observe(observer):
            local.times(turn)
    table = observer.table(len(plain), statistics.mean(plain))
    obstacle = local.trainer.compute.engine.obstacle
    table.caption_justify, table.caption = "left", f"always one micro-batch at a time: {obstacle}"
    if obstacle is None:
        # An observer cannot see what is computed in one pass.
        table.caption = "observed one micro-batch at a time; otherwise as many in one pass as stay in cache"
    return table


def peak_rss_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def step_flops(model: Module, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> int:
    """Return the floating-point operations of all matrix products of forward and backward on `images`.

    Each layer multiplies once forward, once for the gradient of its weights, and once for the gradient of its input,
    which the first layer does not need.
    """
    forward = list[int]()

    def add(_: str, module: Module, output: Tensor) -> None:
        if isinstance(module, Linear | Conv1d | Conv2d):
            # For each output value, the weights (out, ...) below `out` are read once: 2 operations each.
            forward.append(2 * math.prod(output.shape) * math.prod(module.weight.shape[1:]))

    with no_grad(), model.observe_outputs(add):
        model(Tensor(images))
    return 3 * sum(forward) - sum(forward[:1])


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
