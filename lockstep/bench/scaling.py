"""Trains with several numbers of workers, in several ways, in turns with the peer and with lone processes."""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UsageError
from common.job.job import Job
from common.nn.model_source import build_model
from common.nn.models import MODELS
from common.runtime.environment import cores, keep_to_core
from lockstep.bench.baseline.baseline import Baseline, layouts_of
from lockstep.bench.baseline.stepper import Answer, Stepper, all_at_once
from lockstep.bench.reports.rows import BaselineRow, ScalingRow
from lockstep.bench.step.step import FIRST
from lockstep.bench.step.step import WARM_UP as ALONE_WARM_UP
from lockstep.bench.timed_run import WARM_UP, Hashes, TimedRuns, timed_run, write_data
from lockstep.launch.cluster import check_launch
from lockstep.runs.job_file import resolve, to_toml
from lockstep.runs.launch import Launch, Transport


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What is to be measured: every combination."""

    models: tuple[str, ...]
    batches: tuple[int, ...]
    workers: tuple[int, ...]
    transports: tuple[Transport, ...]
    servers: tuple[int, ...]
    is_weak: bool
    #: Micro-batches for each worker: of the largest number of workers, where scaling is strong.
    pieces: int
    #: Steady steps of each combination, and the turns that they are measured in.
    steps: int
    rounds: int
    peer_python: Path | None = None

    def check(self) -> None:
        """Raise `UsageError` for what cannot be measured, before anything is."""
        for servers in self.servers:
            for transport in self.transports:
                check_launch(Launch(workers=1, servers=servers, transport=transport))
        for model in self.models:
            build_model(model)
            if self.peer_python is not None and model not in MODELS:
                raise UsageError(f"the peer has no model {model!r}: expected one of {', '.join(MODELS)}")
        for batch in self.batches:
            for workers in self.workers:
                if not self.is_weak and batch % workers:
                    raise UsageError(
                        f"a batch of {batch} is not divided by {workers} workers: expected a multiple of each of "
                        f"{', '.join(map(str, self.workers))}, so that each has the same share"
                    )

    def cells(self, folder: Path) -> Iterator["Cell"]:
        """Yield what is measured side by side, one worker first."""
        for model in self.models:
            for batch in self.batches:
                for workers in sorted(self.workers):
                    yield self._cell(folder, model, batch, workers)

    def _cell(self, folder: Path, model: str, batch: int, workers: int) -> "Cell":
        micro_batches = self.pieces * (workers if self.is_weak else max(self.workers))
        global_batch = batch * workers if self.is_weak else batch
        share = global_batch // workers
        values = {"model": model, "data": str(write_data(folder, global_batch)), "lr": 0.01, "momentum": 0.9}
        together = {
            "global_batch": global_batch,
            "micro_batches": micro_batches,
            "steps": WARM_UP + self.turn_steps(),
        }
        alone = {"global_batch": share, "micro_batches": max(1, micro_batches // workers), "epochs": 10**6}
        job, _ = resolve({**values, **together}, {}, Launch(workers=workers))
        lone_job, _ = resolve({**values, **alone}, {}, Launch(workers=0))
        return Cell(batch=batch, workers=workers, job=job, lone_job=lone_job)

    def turn_steps(self) -> int:
        """Return the steady steps of one turn."""
        return -(-self.steps // self.rounds)

    def ways(self, workers: int) -> Iterator[Launch]:
        """Yield how a job is carried out by so many workers."""
        for servers in self.servers:
            for transport in self.transports:
                yield Launch(workers=workers, servers=servers, transport=transport)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured in one sitting: the job in all ways, processes that do not talk, the peer."""

    batch: int
    workers: int
    job: Job
    #: A worker's share of the job, for a process that is alone.
    lone_job: Job


@dataclass
class Turns:
    """What the turns of one cell brought."""

    ours: dict[Launch, TimedRuns] = field(default_factory=dict)
    #: By process, the seconds of the steps that were made alone.
    alone: list[list[float]] = field(default_factory=list)
    #: By memory layout.
    peers: dict[str, list[float]] = field(default_factory=dict)
    peer_version: str = ""


@dataclass
class ScalingBench:
    """A bench under way, in a folder of its own."""

    scaling: Scaling
    folder: Path
    say: Callable[[str], None]
    hashes: Hashes = field(default_factory=Hashes)
    #: Images/s of one worker, by model, batch and way.
    _one: dict[tuple[str, int, str, int], float] = field(default_factory=dict)

    def rows(self) -> Iterator[ScalingRow]:
        """Measure; yield each row as soon as it is there."""
        self.scaling.check()
        for cell in self.scaling.cells(self.folder):
            turns = self._measure(cell)
            for launch, runs in turns.ours.items():
                yield self._row(cell, launch, runs, turns)

    def _measure(self, cell: Cell) -> Turns:
        scaling, turns = self.scaling, Turns(alone=[[] for _ in range(cell.workers)])
        with ExitStack() as stack:
            lone = [self._lone(cell, number, stack) for number in range(cell.workers)]
            peers = self._peers(cell, stack)
            all_at_once(lone, ALONE_WARM_UP)
            for peer in peers:
                peer.steps(ALONE_WARM_UP)
            for _ in range(scaling.rounds):
                for launch in scaling.ways(cell.workers):
                    result, steps = timed_run(cell.job, launch, self.folder, self.say)
                    self.hashes.check(cell.job, result)
                    runs = turns.ours.setdefault(launch, TimedRuns())
                    runs.results.append(result)
                    runs.steps.append(steps)
                count = FIRST + scaling.turn_steps()
                for times, answer in zip(turns.alone, all_at_once(lone, count), strict=True):
                    times += answer.seconds[FIRST:]
                for peer in peers:
                    self._book(peer.layout, peer.steps(count), turns)
        return turns

    def _book(self, layout: str, answer: Answer, turns: Turns) -> None:
        turns.peers.setdefault(layout, []).extend(answer.seconds[FIRST:])
        turns.peer_version = answer.version

    def _lone(self, cell: Cell, number: int, stack: ExitStack) -> Stepper:
        job_file = self.folder / "lone.toml"
        job_file.write_text(to_toml(cell.lone_job, Launch(workers=0)), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "lockstep", "bench", "lone", str(job_file)]
        stepper = Stepper.start("a process that trains alone", command)
        stack.callback(stepper.close)
        if cell.workers == cores():
            keep_to_core(stepper.process.pid, number)  # as a cluster's workers are: the ceiling is not to be lower
        return stepper

    def _peers(self, cell: Cell, stack: ExitStack) -> list[Baseline]:
        python, model = self.scaling.peer_python, cell.job.model_name()
        if python is None:
            return []
        arguments = ["ddp", model, str(cell.lone_job.global_batch), str(cell.workers)]
        peers = []
        for layout in layouts_of(model):
            peers.append(Baseline.start(python, arguments, layout))
            stack.callback(peers[-1].close)
        return peers

    def _row(self, cell: Cell, launch: Launch, runs: TimedRuns, turns: Turns) -> ScalingRow:
        job, result, steady = cell.job, runs.results[-1], runs.steady()
        speed = job.global_batch / statistics.median(steady)
        ceiling = sum(cell.lone_job.global_batch / statistics.median(seconds) for seconds in turns.alone)
        way = (job.model_name(), cell.batch, launch.transport, launch.servers)
        if launch.workers == 1:
            self._one[way] = speed
        one = self._one.get(way)
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
            steps=len(steady),
            ms_per_step=statistics.median(steady) * 1e3,
            images_per_s=speed,
            split=runs.split(),
            of_one_worker=speed / launch.workers / one if one is not None else None,
            ceiling_images_per_s=ceiling,
            of_ceiling=speed / ceiling,
            weights_sha256=result.weights_sha256,
            peer=faster_peer(turns, job.global_batch, speed),
        )


def faster_peer(turns: Turns, global_batch: int, our_speed: float) -> BaselineRow | None:
    """Return the peer in the layout in which it is faster, None where there was no peer."""
    medians = {layout: statistics.median(seconds) for layout, seconds in turns.peers.items()}
    if not medians:
        return None
    layout = min(medians, key=lambda each: medians[each])
    speed = global_batch / medians[layout]
    return BaselineRow(
        version=turns.peer_version,
        layout=layout,
        ms_per_step=medians[layout] * 1e3,
        images_per_s=speed,
        ratio=our_speed / speed,
    )
