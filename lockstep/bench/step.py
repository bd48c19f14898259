"""Bench one training step of one process with one thread, next to the same step in PyTorch."""

import math
import resource
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any, ClassVar, get_args

import click
import msgspec
import numpy as np
from rich.table import Table

from lockstep.bench import bench as options
from lockstep.bench import peers, timed_run
from lockstep.bench.bench import ComparedBench, Panel, Series, ranged, whole_machine_marks, with_torch
from lockstep.bench.peers import WARM_UP, Answer, BaselineRow
from lockstep.bench.timed_run import BenchSession
from lockstep.cli.options.types import whole_number
from lockstep.common.autograd.graph import no_grad, observe
from lockstep.common.autograd.primitives.primitive import Primitive
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import load
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.model.source import is_torch_module
from lockstep.common.nn.layers.convolution import Conv1d, Conv2d
from lockstep.common.nn.layers.linear import Linear
from lockstep.common.nn.models import MODELS
from lockstep.common.nn.module import Module
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.runtime.version import VERSION
from lockstep.ps.setup import open_run
from lockstep.results.display import counted
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.single_process import SingleProcessTrainer

#: Turns in which steps with and without a profile alternate.
PROFILED = 6

#: Rows and columns of a product at full speed, which fit into the second-level cache; seconds of measuring it.
GEMM_SIZE, GEMM_S = 384, 0.15


def gemm_gflops(clock: Clock) -> float:
    """Return the speed of the fastest of some float32 matrix products of NumPy, with one thread."""
    left, right = np.full((GEMM_SIZE, GEMM_SIZE), 0.5, np.float32), np.full((GEMM_SIZE, GEMM_SIZE), 0.25, np.float32)
    out, best_s, until = np.empty_like(left), float("inf"), clock.now() + GEMM_S
    while clock.now() < until:
        start = clock.now()
        np.matmul(left, right, out=out)
        best_s = min(best_s, clock.now() - start)
    return 2e-9 * GEMM_SIZE**3 / best_s


class StepFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row: a model at a batch size."""

    model: str
    batch: int
    micro_batches: int
    #: The median step of the middle turn, and those of the fastest and of the slowest turn. `steps` in all turns.
    ms_per_step: float
    ms_spread: tuple[float, float] = (0.0, 0.0)
    steps: int
    images_per_s: float
    peak_rss_mb: float
    #: Share of the step that its unavoidable matrix products take at the peak; None for a module of PyTorch. That peak.
    gemm_gflops_share: float | None
    gemm_peak_gflops: float
    #: PyTorch with one thread, with one per core, and the latter with `torch.compile`.
    peer: BaselineRow | None = None
    all_threads: BaselineRow | None = None
    compiled: BaselineRow | None = None
    #: Of a module, PyTorch with one thread in contiguous memory, as ours is, if the other layout is faster.
    contiguous: BaselineRow | None = None

    @property
    def prices(self) -> list[tuple[str, float]]:
        """For a module, by memory layout, the part by which a step is longer than in a plain loop over it."""
        loops = () if self.model in MODELS else (self.peer, self.contiguous)
        return [(loop.layout, 1 / loop.ratio - 1) for loop in loops if loop is not None]


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
        take_numerics(self.job.numerics)
        self.trainer = SingleProcessTrainer(open_run("bench", self.job, self.data, RunOptions()))

    def times(self, steps: int) -> list[float]:
        """Make `steps` steps; return the seconds that each took."""
        return timed_run.times_of(lambda: self.trainer.step(next(self._numbers)), steps, self.clock)

    def flops(self) -> int:
        """Return the operations of the matrix products of one step."""
        images = self.data.train.images[: self.job.global_batch]
        return step_flops(self.trainer.setup.model.module, self.trainer.compute.batches.preparation.images(images))

    def share_of_products(self, gflops: float, step_s: float) -> float | None:
        """Return the share of a step that its matrix products take at a speed; None for a module of PyTorch."""
        is_ours = isinstance(self.trainer.setup.model.module, Module)
        return self.flops() / (gflops * 1e9) / step_s if is_ours else None


@click.command(hidden=True)
@click.argument("job_file", type=click.Path(path_type=Path))
def lone(job_file: Path) -> None:
    """Make as many steps of the job as each line of standard input says; answer with what each took."""
    job, _ = resolve(read_values(job_file), {})
    local = LocalSteps(job, load(job.data), SystemClock())
    for line in sys.stdin:
        click.echo(msgspec.json.encode(Answer(VERSION, local.times(int(line)), peak_rss_bytes())))


@dataclass(kw_only=True)
class StepBench(ComparedBench[StepFigures]):
    """Time whole training steps: forward, loss, backward, update.

    The bench runs the code of a worker and a server in one process, with one BLAS thread and with MNIST in memory. It
    reports the median step of the middle turn, with those of the fastest and the slowest turn in brackets.

    With --peer-python, PyTorch takes turns with it: with one thread, with a thread per core, and compiled. The faster
    of its two memory layouts counts. For a torch.nn.Module, this is the same module, and --peer-python is not needed.
    Ratios are PyTorch's time over ours. The price of a module is how much longer a step takes than with one thread; if
    channels-last is faster, also than in contiguous memory, in which Lockstep computes modules.

    Each combination runs in a separate process. Several numbers of micro-batches take turns, and the last lines compare
    each speed with that of the first number.

    \b
      lockstep bench step --model cnn --batch 32
      lockstep bench step --model mlp --peer-python ~/torch/bin/python
      lockstep bench step --model linear,mlp,lenet,cnn --batch 32,128
      lockstep bench step --model mlp --micro-batches 1,2,4,8,16,32
      lockstep bench step --model my_net.py:build --data my.npz
    """

    name: ClassVar = "step"
    summary: ClassVar = "One training step of one process and one thread."
    row: ClassVar = StepFigures

    models: tuple[str, ...] = options.models("--model", text="models", default="lenet")
    data: str = options.option("--data", click.STRING, "data, as of train", "mnist", metavar="DATA")
    batches: tuple[int, ...] = options.option("--batch", options.NUMBERS, "batch sizes", "128")
    cuts: tuple[int, ...] = options.option("--micro-batches", options.NUMBERS, "micro-batches per step", "1")
    steps: int = options.option("--steps", whole_number(30), "steps to measure", "120")
    rounds: int = options.rounds("5")
    numerics: Numerics | None = options.option(
        "--numerics", click.Choice(get_args(Numerics)), "portable or native", metavar="NAME", shown="as of train"
    )
    is_profiling: bool = options.option("--profile", click.BOOL, "show time and bytes per primitive instead", "no")

    def measure(self, session: BenchSession) -> Iterator[StepFigures]:
        if self.is_profiling:
            yield from self._profile(session)
            return
        rows = list[StepFigures]()
        for model, batch in product(self.models, self.batches):
            for row in self._measure(session, model, batch):
                rows.append(row)
                yield row
        for line in cut_lines(rows) if len(self.cuts) > 1 else ():
            session.say(line)
        ratios = [row.peer.ratio for row in rows if row.peer is not None]
        if len(ratios) > 1:
            session.say(f"geometric mean of torch / ours: {statistics.geometric_mean(ratios):.2f}")

    def _profile(self, session: BenchSession) -> Iterator[StepFigures]:
        """Print where the time of a step goes, and yield no row."""
        if len(self.models) * len(self.batches) * len(self.cuts) > 1:
            raise UsageError("--profile: expected one model, one batch size and one number of micro-batches")
        job = self._job(self.models[0], self.batches[0], self.cuts[0])
        local = LocalSteps(job, load(job.data), session.clock)
        if is_torch_module(local.trainer.setup.model.module):
            raise UsageError(
                f"--profile with {job.model_name()!r}, a torch.nn.Module: expected a model of Lockstep's layers, whose "
                "primitives can be observed; use torch.profiler in a loop of your own"
            )
        session.console.print(profile(local, self.steps))
        yield from ()

    def _job(self, model: str, batch: int, cut: int) -> Job:
        # More epochs than are measured, so that none ends early.
        values: dict[str, Any] = {"global_batch": batch, "micro_batches": cut, "epochs": 1000}
        if self.numerics is not None:
            values["numerics"] = self.numerics
        return timed_run.bench_job(model=model, data=self.data, **values)

    def _measure(self, session: BenchSession, model: str, batch: int) -> Iterator[StepFigures]:
        """Measure each number of micro-batches and PyTorch in turns: at least `steps` steps of each.

        Ours are made in processes of their own, so that their peak memory is theirs.
        """
        python = peers.python_for(model, self.peer_python)
        subject = peers.BaselineSubject(model=model, data="" if model in MODELS else session.data(self.data))
        jobs = [self._job(model, batch, cut) for cut in self.cuts]
        turn = timed_run.per_turn(self.steps, self.rounds)
        with ExitStack() as stack:
            ours = [peers.start_singles(job, 1, session.folder, stack)[0] for job in jobs]
            alone = peers.start_baselines(python, subject.arguments("step", batch), stack, subject.layouts())
            all_threads, compiled = peers.start_whole_machine(
                python, subject, batch, stack, is_compiling=self.is_compiling, say=session.say
            )
            peers.in_turns(self.rounds, turn, [[each] for each in (*ours, *alone, *all_threads, *compiled)])
        # The products are the same in any number of micro-batches.
        local, median = LocalSteps(jobs[0], load(self.data), session.clock), statistics.median
        for job, process in zip(jobs, ours, strict=True):
            turns, peak = process.seconds(), gemm_gflops(session.clock)
            step_s, peer = timed_run.middle_s(turns, median), peers.faster(alone, median, turns, batch)
            is_other = model not in MODELS and peer is not None and peer.layout != peers.CONTIGUOUS
            yield StepFigures(
                model=job.model_name(),
                batch=batch,
                micro_batches=job.micro_batches,
                ms_per_step=step_s * 1e3,
                ms_spread=timed_run.spread_ms(turns, median),
                steps=self.rounds * turn,
                images_per_s=batch / step_s,
                peak_rss_mb=process.turns[-1].peak_rss_bytes / 1e6,
                gemm_gflops_share=local.share_of_products(peak, step_s),
                gemm_peak_gflops=peak,
                peer=peer,
                all_threads=peers.faster(all_threads, median, turns, batch),
                compiled=peers.faster(compiled, median, turns, batch),
                contiguous=peers.faster(alone[:1], median, turns, batch) if is_other else None,
            )

    def advice(self, rows: Sequence[StepFigures]) -> str:
        return peers.ADVICE if rows and all(row.peer is None for row in rows) else ""

    def lines(self, row: StepFigures) -> list[str]:
        cut = f" in {row.micro_batches} micro-batches" if row.micro_batches > 1 else ""
        share = "-" if row.gemm_gflops_share is None else f"{row.gemm_gflops_share:.0%}"
        return [
            f"{row.model}, batch {row.batch}{cut}, one thread, {row.steps} steps in {counted(self.rounds, 'turn')}",
            f"step          {ranged(row.ms_per_step, row.ms_spread, '.3f')} ms, {row.images_per_s:,.0f} images/s",
            f"products      {share} of it at the peak of {row.gemm_peak_gflops:.0f} GFLOP/s",
            f"peak memory   {row.peak_rss_mb:.0f} MB",
            *(line for name, peer in _peers_of(row) for line in _lines_of(name, peer)),
            *(f"price         {price:+.1%} over a plain loop, one thread, {layout}" for layout, price in row.prices),
        ]

    def panels(self, rows: Sequence[StepFigures]) -> list[list[Panel]]:
        """Return a group of bars per model and batch: the time and memory of a step, ours and the baselines'."""
        names = [f"{row.model}, {row.batch}" for row in rows]
        texts = with_torch([f"{row.images_per_s:,.0f}/s" for row in rows], rows)
        title, pair = "a training step of one process, one thread", _pair(rows, "ms_per_step")
        pair += whole_machine_marks(rows, "ms_per_step")
        time = Panel(title, "ms", pair, names, texts, is_grouped=True, is_log=True, end=12)
        pair = _pair(rows, "peak_rss_mb")
        return [[time, Panel("peak memory of the process", "MB", pair, [""] * len(rows), is_grouped=True)]]


def _peers_of(row: StepFigures) -> list[tuple[str, BaselineRow]]:
    """Return what a row was compared with, and what it is called on the screen."""
    named = {"torch": row.peer, "contiguous": row.contiguous, "all threads": row.all_threads, "compiled": row.compiled}
    return [(name, peer) for name, peer in named.items() if peer is not None]


def _lines_of(name: str, peer: BaselineRow) -> list[str]:
    time = ranged(peer.ms_per_step, peer.ms_spread, ".3f")
    threads = counted(peer.threads, "thread")
    return [
        f"{name:<13} {time} ms, {threads}, {peer.layout}, {peer.peak_rss_mb:.0f} MB",
        f"{f'{name} / ours':<13} {ranged(peer.ratio, peer.ratio_spread)}  (torch {peer.version})",
    ]


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


def profile(local: LocalSteps, steps: int) -> Table:
    """Return a table of where the time of a step goes; its caption tells how micro-batches are computed otherwise."""
    local.times(WARM_UP)
    observer, plain, turn = Profile(local.clock), list[float](), timed_run.per_turn(steps, PROFILED)
    for _ in range(PROFILED):
        plain.extend(local.times(turn))
        with observe(observer):
            local.times(turn)
    table = observer.table(len(plain), statistics.mean(plain))
    obstacle = local.trainer.compute.engine.obstacle
    table.caption_justify, table.caption = "left", f"always one micro-batch at a time: {obstacle}"
    if obstacle is None:
        # An observer cannot see a computation in one pass.
        table.caption = "observed one micro-batch at a time; otherwise as many in one pass as stay in cache"
    return table


def peak_rss_bytes(path: Path = Path("/proc/self/status")) -> int:
    """Return the peak memory of this process in bytes.

    Linux hands the peak that `getrusage` reports from a process to the program that it starts, so it may be that of the
    bench. The peak of this program's own memory is in another place.
    """
    with suppress(OSError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
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
class Profile:
    """An observer of the autograd engine that adds up the costs of each primitive."""

    clock: Clock
    #: By primitive and direction: seconds, calls, and the size of the arrays that went in and came out.
    seconds: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __call__(
        self, primitive: Primitive, direction: str, function: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """Call the function, and record its time and its arrays."""
        start = self.clock.now()
        result = function(*args, **options)
        key = primitive.name, direction
        self.seconds[key] += self.clock.now() - start
        self.calls[key] += 1
        self.bytes[key] += sum(each.nbytes for each in (*args, result) if isinstance(each, np.ndarray))
        return result

    def table(self, steps: int, step_s: float) -> Table:
        """Return the primitives of an average step of `step_s` seconds, the most expensive first."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("primitive", "direction", "calls", "µs", "share", "MB"):
            table.add_column(heading, justify="left" if heading in ("primitive", "direction") else "right")
        for key, total_s in sorted(self.seconds.items(), key=lambda item: -item[1]):
            seconds = total_s / steps
            figures = (f"{seconds * 1e6:,.1f}", f"{seconds / step_s:.1%}", f"{self.bytes[key] / steps / 1e6:.2f}")
            table.add_row(*key, f"{self.calls[key] / steps:g}", *figures)
        rest = step_s - sum(self.seconds.values()) / steps
        table.add_row("everything else", "", "", f"{rest * 1e6:,.1f}", f"{rest / step_s:.1%}", "")
        return table
