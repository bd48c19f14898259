"""Bench training with several numbers of workers, in turns with the baseline and with independent processes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.bench.baseline import Answer, Baseline, Stepper, all_at_once, layouts_of
from lockstep.bench.reports.rows import BaselineRow, ScalingRow
from lockstep.bench.step import FIRST
from lockstep.bench.step import WARM_UP as STEP_WARM_UP
from lockstep.bench.timed_run import WARM_UP, DigestCheck, TimedRuns, mean_step_s, timed_run, write_data
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.model.source import is_torch_module, open_model
from lockstep.common.nn.models import MODELS
from lockstep.common.runtime.environment import cores, keep_to_core
from lockstep.common.transport.transports import Transport
from lockstep.launch.cluster import check_launch
from lockstep.runs.job_file import resolve, to_toml
from lockstep.runs.launch_config import Launch


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What to measure: every combination."""

    models: tuple[str, ...]
    batches: tuple[int, ...]
    workers: tuple[int, ...]
    transports: tuple[Transport, ...]
    servers: tuple[int, ...]
    is_weak: bool
    #: Micro-batches per worker; in strong scaling, per worker of the largest number.
    micro_batches_per_worker: int
    #: Steady steps of each combination, and the turns in which they are measured.
    steps: int
    rounds: int
    peer_python: Path | None = None
    #: As of train.
    data: str = "mnist"

    def check(self) -> None:
        """Raise UsageError for what cannot be measured, before measuring anything."""
        for servers in self.servers:
            for transport in self.transports:
                check_launch(Launch(workers=1, servers=servers, transport=transport))
        for model in self.models:
            if self.peer_python is not None and self.python_of(model) is None:
                raise UsageError(
                    f"the PyTorch baseline has no model {model!r}: expected one of {', '.join(MODELS)}, or a function "
                    "that returns a torch.nn.Module"
                )
        for batch in self.batches:
            for workers in self.workers:
                if not self.is_weak and batch % workers:
                    raise UsageError(
                        f"a batch of {batch} cannot be divided among {workers} workers: expected a multiple of each of "
                        f"{', '.join(map(str, self.workers))}, so that each has the same share"
                    )

    def python_of(self, model: str) -> Path | None:
        """Return the Python under which the baseline trains a model, None if there is no baseline.

        A module of PyTorch is trained here by us, and so it can be by the baseline.
        """
        if is_torch_module(open_model(model, 0).module):
            return self.peer_python or Path(sys.executable)
        return self.peer_python if model in MODELS else None

    def cells(self, folder: Path) -> Iterator["Cell"]:
        """Yield what is measured side by side, one worker first."""
        for model in self.models:
            for batch in self.batches:
                for workers in sorted(self.workers):
                    yield self._cell(folder, model, batch, workers)

    def _cell(self, folder: Path, model: str, batch: int, workers: int) -> "Cell":
        micro_batches = self.micro_batches_per_worker * (workers if self.is_weak else max(self.workers))
        global_batch = batch * workers if self.is_weak else batch
        share = global_batch // workers
        values = {"model": model, "data": str(write_data(folder, self.data)), "lr": 0.01, "momentum": 0.9}
        shared = {
            "global_batch": global_batch,
            "micro_batches": micro_batches,
            "steps": WARM_UP + self.turn_steps(),
        }
        single = {"global_batch": share, "micro_batches": max(1, micro_batches // workers), "epochs": 10**6}
        job, _ = resolve({**values, **shared}, {})
        single_job, _ = resolve({**values, **single}, {})
        return Cell(batch=batch, workers=workers, job=job, single_job=single_job)

    def turn_steps(self) -> int:
        """Return the steady steps of one turn."""
        return -(-self.steps // self.rounds)

    def launches(self, workers: int) -> Iterator[Launch]:
        """Yield the launches of a job with that number of workers."""
        for servers in self.servers:
            for transport in self.transports:
                yield Launch(workers=workers, servers=servers, transport=transport)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured side by side: the job with all launches, independent processes, and the baseline."""

    batch: int
    workers: int
    job: Job
    #: A worker's share of the job, for an independent process.
    single_job: Job


@dataclass
class Turns:
    """The times measured in the turns of one cell."""

    ours: dict[Launch, TimedRuns] = field(default_factory=dict)
    #: Seconds of the steps of each independent process, turn by turn.
    single: list[list[list[float]]] = field(default_factory=list)
    #: Seconds of the steps of the baseline, turn by turn, by memory layout.
    baselines: dict[str, list[list[float]]] = field(default_factory=dict)
    baseline_version: str = ""


@dataclass
class ScalingBench:
    """A running bench, with a folder of its own."""

    scaling: Scaling
    folder: Path
    say: Callable[[str], None]
    digests: DigestCheck = field(default_factory=DigestCheck)
    #: Images/s of one worker, by model, batch, transport and servers.
    _one: dict[tuple[str, int, str, int], float] = field(default_factory=dict)

    def rows(self) -> Iterator[ScalingRow]:
        """Measure, and yield each row as soon as it is known."""
        self.scaling.check()
        for cell in self.scaling.cells(self.folder):
            turns = self._measure(cell)
            for launch, runs in turns.ours.items():
                yield self._row(cell, launch, runs, turns)

    def _measure(self, cell: Cell) -> Turns:
        scaling, turns = self.scaling, Turns(single=[[] for _ in range(cell.workers)])
        with ExitStack() as stack:
            singles = [self._single(cell, number, stack) for number in range(cell.workers)]
            baselines = self._baselines(cell, stack)
            all_at_once(singles, STEP_WARM_UP)
            for baseline in baselines:
                baseline.steps(STEP_WARM_UP)
            for _ in range(scaling.rounds):
                for launch in scaling.launches(cell.workers):
                    result, steps = timed_run(cell.job, launch, self.folder, self.say)
                    self.digests.check(cell.job, result)
                    turns.ours.setdefault(launch, TimedRuns()).add(result, steps)
                count = FIRST + scaling.turn_steps()
                for times, answer in zip(turns.single, all_at_once(singles, count), strict=True):
                    times.append(answer.seconds[FIRST:])
                for baseline in baselines:
                    self._record(baseline.layout, baseline.steps(count), turns)
        return turns

    def _record(self, layout: str, answer: Answer, turns: Turns) -> None:
        turns.baselines.setdefault(layout, []).append(answer.seconds[FIRST:])
        turns.baseline_version = answer.version

    def _single(self, cell: Cell, number: int, stack: ExitStack) -> Stepper:
        job_file = self.folder / "single.toml"
        job_file.write_text(to_toml(cell.single_job, Launch(workers=0)), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "lockstep", "bench", "lone", str(job_file)]
        stepper = Stepper.start("an independent process", command)
        stack.callback(stepper.close)
        if cell.workers == cores():
            keep_to_core(
                stepper.process.pid, number
            )  # as the workers of a cluster are, so that the ceiling is not lower
        return stepper

    def _baselines(self, cell: Cell, stack: ExitStack) -> list[Baseline]:
        model = cell.job.model_name()
        python = self.scaling.python_of(model)
        if python is None:
            return []
        arguments = ["ddp", model, str(cell.single_job.global_batch), str(cell.workers)]
        if model not in MODELS:
            arguments += ["--data", cell.job.data]
        baselines = []
        for layout in layouts_of(model):
            baselines.append(Baseline.start(python, arguments, layout))
            stack.callback(baselines[-1].close)
        return baselines

    def _row(self, cell: Cell, launch: Launch, runs: TimedRuns, turns: Turns) -> ScalingRow:
        job, result, step_s = cell.job, runs.results[-1], mean_step_s(runs.turns())
        speed = job.global_batch / step_s
        ceiling = sum(cell.single_job.global_batch / mean_step_s(seconds) for seconds in turns.single)
        setup = (job.model_name(), cell.batch, launch.transport, launch.servers)
        if launch.workers == 1:
            self._one[setup] = speed
        one = self._one.get(setup)
        return ScalingRow(
            model=job.model_name(),
            scaling="weak" if self.scaling.is_weak else "strong",
            batch=cell.batch,
            workers=launch.workers,
            servers=launch.servers,
            transport=launch.transport,
            carrier=result.transport,
            global_batch=job.global_batch,
            micro_batches=job.micro_batches,
            parameters=result.parameters,
            cores=cores(),
            steps=len(runs.steady()),
            ms_per_step=step_s * 1e3,
            images_per_s=speed,
            split=runs.middle_split(),
            of_one_worker=speed / launch.workers / one if one is not None else None,
            ceiling_images_per_s=ceiling,
            of_ceiling=speed / ceiling,
            weights_sha256=result.weights_sha256,
            peer=faster_baseline(turns, job.global_batch, speed),
        )


def faster_baseline(turns: Turns, global_batch: int, our_speed: float) -> BaselineRow | None:
    """Return the baseline in its faster layout, or None without a baseline."""
    means = {layout: mean_step_s(seconds) for layout, seconds in turns.baselines.items()}
    if not means:
        return None
    layout = min(means, key=lambda each: means[each])
    speed = global_batch / means[layout]
    return BaselineRow(
        version=turns.baseline_version,
        layout=layout,
        ms_per_step=means[layout] * 1e3,
        images_per_s=speed,
        ratio=our_speed / speed,
    )
