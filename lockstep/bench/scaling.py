"""Bench training with several numbers of workers, in turns with the baseline and with independent processes."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import click
import msgspec

from lockstep.bench import parameters as options
from lockstep.bench import peers, timed_run
from lockstep.bench.bench import (
    TORCH,
    Bench,
    Panel,
    Series,
    TableColumn,
    described,
    over,
    split_columns,
    split_series,
    torch_marks,
    with_torch,
)
from lockstep.bench.peers import WARM_UP, BaselineRow, Stepper
from lockstep.bench.timed_run import BenchSession, TimedRun
from lockstep.cli.options.types import WholeNumber
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.model.source import is_torch_module, open_model
from lockstep.common.nn.models import MODELS
from lockstep.common.runtime.environment import cores
from lockstep.common.transport.transports import Transport
from lockstep.launch.cluster import check_launch
from lockstep.ps.run.timing import Split
from lockstep.runs.launch_config import Launch


class ScalingRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model trained by a number of workers over one transport."""

    model: Annotated[str, TableColumn("model", -6, ".6")]
    #: Weak: each worker has `batch` samples per step. Strong: all workers share `batch` samples.
    scaling: Literal["weak", "strong"]
    batch: Annotated[int, TableColumn("batch", 5)]
    workers: int
    servers: int
    #: The requested transport, and the one that carried the messages.
    transport: Annotated[str, over("over", -10)]
    carrier: str
    global_batch: int
    micro_batches: int
    parameters: int
    #: Cores of the machine, which workers, servers and the bench share.
    cores: int
    #: Steady steps measured in all turns, and their mean in the middle turn.
    steps: int
    ms_per_step: Annotated[float, TableColumn("ms", 7, ".3f")]
    images_per_s: Annotated[float, TableColumn("images/s", 9, ",.0f")]
    #: Images/s per worker over the images/s of a single worker; None if a single worker was not measured.
    of_one_worker: Annotated[float | None, TableColumn("/one", 5, ".0%")]
    #: Images/s of as many independent processes at the same time, and our share of that.
    ceiling_images_per_s: float
    of_ceiling: Annotated[float, TableColumn("/ceil", 5, ".0%")]
    #: Digest of the weights at the end of each run; equal for equal jobs.
    weights_sha256: str
    peer: Annotated[BaselineRow | None, TORCH]
    #: Where the time of the mean step of that turn went.
    split: Annotated[Split, *split_columns("comp", "exch", "updt", "wait")]


@dataclass(kw_only=True)
class ScalingBench(Bench[ScalingRow]):
    """Train with several numbers of workers, as `lockstep train` does, and time the steps.

    Records and checkpoints are written as in any run. The start, the first 20 steps, evaluations and the step after
    each evaluation are not measured. Images/s are those of all other steps in the median turn, slow ones included.

    As many independent processes run in turns with the workers; their speed is the ceiling. With --peer-python, so
    does torch's DistributedDataParallel over gloo, in its faster memory layout. For a torch.nn.Module, this is the
    same module, and --peer-python is not needed. The parts of a step are those of an average worker.

    \b
      lockstep bench scaling --model mlp --batch 128 --to scaling.json
      lockstep bench scaling --strong --workers 1,2,4 --plot scaling.png
      lockstep bench scaling --peer-python ~/torch/bin/python
      lockstep bench scaling --model my_net.py:build --data my.npz
    """

    name: ClassVar = "scaling"
    summary: ClassVar = "Several workers: images/s, and where the time goes."
    row: ClassVar = ScalingRow

    models: tuple[str, ...] = options.models("--model --models", text="models, as of train", default="mlp,lenet,cnn")
    data: str = options.option("--data", click.STRING, "data, as of train", "mnist", metavar="DATA")
    batches: tuple[int, ...] = options.option("--batch --batches", options.NUMBERS, "batch sizes", "32,128")
    workers: tuple[int, ...] = options.workers("1,2")
    transports: tuple[Transport, ...] = options.transports()
    servers: tuple[int, ...] = options.servers("numbers of server processes", "1")
    is_weak: bool = options.option(
        "--weak/--strong",
        click.BOOL,
        "the batch is that of each worker, or of all together (the same job, so the same weights)",
        "yes",
        shown="weak",
    )
    micro_batches_per_worker: int = options.option(
        "--micro-batches-per-worker",
        WholeNumber(1, 1024),
        "micro-batches per worker; with --strong, of the largest number of workers",
        "1",
    )
    steps: int = options.steps("steps to measure", "300")
    rounds: int = options.rounds()
    peer_python: Path | None = options.peer_python()
    #: Images/s of one worker, by model, batch, transport and servers.
    _one: dict[tuple[str, int, str, int], float] = field(default_factory=dict, init=False)

    def measure(self, session: BenchSession) -> Iterator[ScalingRow]:
        self._check()
        rows = list[ScalingRow]()
        for model, batch, workers in product(self.models, self.batches, sorted(self.workers)):
            for row in self._measure(session, model, batch, workers):
                rows.append(row)
                yield row
        for row in rows if not self.is_weak else ():
            session.say(f"weights sha256  {row.weights_sha256}  {row.model}, {row.workers} {row.transport}")

    def _check(self) -> None:
        """Raise UsageError for what cannot be measured, before measuring anything."""
        for launch in self._launches(1):
            check_launch(launch)
        for model in self.models:
            if self.peer_python is not None and self._python_of(model) is None:
                raise UsageError(
                    f"the PyTorch baseline has no model {model!r}: expected one of {', '.join(MODELS)}, or a function "
                    "that returns a torch.nn.Module"
                )
        for batch, workers in product(self.batches, self.workers):
            if not self.is_weak and batch % workers:
                raise UsageError(
                    f"a batch of {batch} cannot be divided among {workers} workers: expected a multiple of each of "
                    f"{', '.join(map(str, self.workers))}, so that each has the same share"
                )

    def _launches(self, workers: int) -> list[Launch]:
        setups = product(self.servers, self.transports)
        return [Launch(workers=workers, servers=servers, transport=transport) for servers, transport in setups]

    def _python_of(self, model: str) -> Path | None:
        """Return the Python under which the baseline trains a model, None if there is no baseline.

        A module of PyTorch is trained here by us, and so it can be by the baseline.
        """
        if is_torch_module(open_model(model, 0).module):
            return self.peer_python or Path(sys.executable)
        return self.peer_python if model in MODELS else None

    def _measure(self, session: BenchSession, model: str, batch: int, workers: int) -> Iterator[ScalingRow]:
        """Measure side by side: the job with all launches, independent processes with a share each, the baseline."""
        python = self._python_of(model)
        micro_batches = self.micro_batches_per_worker * (workers if self.is_weak else max(self.workers))
        global_batch = batch * workers if self.is_weak else batch
        turn, values = timed_run.per_turn(self.steps, self.rounds), {"model": model, "data": session.data(self.data)}
        shared = {"global_batch": global_batch, "micro_batches": micro_batches, "steps": WARM_UP + turn}
        share = {"global_batch": global_batch // workers, "micro_batches": max(1, micro_batches // workers)}
        job = timed_run.bench_job(**values, **shared)
        single_job = timed_run.bench_job(**values, **share, epochs=10**6)
        ours: dict[Launch, list[TimedRun]] = {launch: [] for launch in self._launches(workers)}
        with ExitStack() as stack:
            singles = peers.start_singles(single_job, workers, session.folder, stack)
            data = [] if model in MODELS else ["--data", job.data]
            arguments = ["ddp", model, str(single_job.global_batch), str(workers), *data]
            baselines = peers.start_baselines(python, arguments, stack, peers.layouts_of(model))
            groups = [singles, *([baseline] for baseline in baselines)]
            peers.in_turns(self.rounds, turn, groups, partial(session.run_each, job, ours))
        ceiling = sum(single_job.global_batch / timed_run.mean_step_s(single.seconds()) for single in singles)
        for launch, runs in ours.items():
            yield self._row(batch, job, launch, runs, ceiling, baselines)

    def _row(
        self, batch: int, job: Job, launch: Launch, runs: list[TimedRun], ceiling: float, baselines: list[Stepper]
    ) -> ScalingRow:
        result, turns = runs[-1].result, [run.seconds() for run in runs]
        step_s = timed_run.mean_step_s(turns)
        speed = job.global_batch / step_s
        setup = (job.model_name(), batch, launch.transport, launch.servers)
        if launch.workers == 1:
            self._one[setup] = speed
        one = self._one.get(setup)
        return ScalingRow(
            model=job.model_name(),
            scaling="weak" if self.is_weak else "strong",
            batch=batch,
            workers=launch.workers,
            servers=launch.servers,
            transport=launch.transport,
            carrier=result.transport,
            global_batch=job.global_batch,
            micro_batches=job.micro_batches,
            parameters=result.parameters,
            cores=cores(),
            steps=len(timed_run.all_seconds(turns)),
            ms_per_step=step_s * 1e3,
            images_per_s=speed,
            of_one_worker=speed / launch.workers / one if one is not None else None,
            ceiling_images_per_s=ceiling,
            of_ceiling=speed / ceiling,
            weights_sha256=result.weights_sha256,
            peer=peers.faster(baselines, timed_run.mean_step_s, step_s, job.global_batch),
            split=timed_run.split_of([timed_run.middle_run(runs)]),
        )

    def panels(self, rows: Sequence[ScalingRow]) -> list[list[Panel]]:
        """Return two panels per model: images/s next to ceiling and baseline, and the parts of a step."""
        models = dict.fromkeys(row.model for row in rows)
        return [_panels(model, [row for row in rows if row.model == model]) for model in models]


def _panels(model: str, rows: Sequence[ScalingRow]) -> list[Panel]:
    ceiling = [row.ceiling_images_per_s for row in rows]
    speeds = Panel(
        f"{model}, {rows[0].scaling} scaling: speed, and its share of the ceiling",
        "images/s",
        [
            Series("", "ours", [row.images_per_s for row in rows]),
            Series("ceiling (independent processes)", "ceiling", ceiling, "|"),
            torch_marks(rows, "images_per_s"),
        ],
        [f"batch {row.batch}, {described(row)}" for row in rows],
        with_torch([f"{row.of_ceiling:.0%}" for row in rows], rows),
        end=1.3,
    )
    return [speeds, Panel("time of a step", "ms", split_series(rows), [""] * len(rows))]
