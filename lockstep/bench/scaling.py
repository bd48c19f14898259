"""Bench training with several numbers of processes, in turns with the baseline and with independent processes."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import click
import msgspec
from msgspec.structs import replace

from lockstep.bench import bench as options
from lockstep.bench import peers, timed_run
from lockstep.bench.bench import (
    TORCH,
    ComparedBench,
    Panel,
    Series,
    TableColumn,
    described,
    over,
    split_columns,
    split_series,
    torch_marks,
    whole_machine_marks,
)
from lockstep.bench.peers import WARM_UP, BaselineRow, Stepper
from lockstep.bench.stand_ins import CLASSES, sleeping
from lockstep.bench.timed_run import BenchSession, StepProcessorTime, TimedRun, per_step
from lockstep.cli.options.types import whole_number
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.nn.models import MODELS
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.environment import cores
from lockstep.common.transport.transports import Transport
from lockstep.launch.cluster import check_launch
from lockstep.ps.run.progress import Split
from lockstep.runs.cost_model import shares_memory

#: The models that are measured if none is named, and the values of one that sleeps: those of `mlp`.
MEASURED, VALUES = ("mlp", "lenet", "cnn"), 535_818

#: The name of the model that sleeps, in rows.
SLEEP = "sleep"

#: The program of a process that keeps a core busy until its parent ends.
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


class ScalingRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model trained by a number of workers over one transport."""

    model: Annotated[str, TableColumn("model", -6, ".6", of=lambda row: row.short_name())]
    #: Weak: each worker has `batch` samples per step. Strong: all workers share `batch` samples.
    scaling: Literal["weak", "strong"]
    batch: Annotated[int, TableColumn("batch", 5)]
    #: Processes, in so many teams.
    workers: int
    teams: int = 1
    servers: int
    #: The requested transport, and the one that carried the messages.
    transport: Annotated[str, over("over", -10)]
    carrier: str
    global_batch: int
    micro_batches: int
    parameters: int
    #: Seconds for which a micro-batch sleeps instead of computing.
    sleep_s: float = 0.0
    #: Cores of the machine, which workers, servers and the bench share.
    cores: int
    #: Other processes that keep a core busy meanwhile.
    busy: int = 0
    #: Steady steps measured in all turns, and their mean in the middle turn.
    steps: int
    ms_per_step: Annotated[float, TableColumn("ms", 7, ".3f")]
    #: The mean steps of the fastest and of the slowest turn.
    ms_spread: tuple[float, float] = (0.0, 0.0)
    images_per_s: Annotated[float, TableColumn("images/s", 9, ",.0f")]
    #: Images/s per process over those of a single process: the efficiency. None if a single one was not measured.
    of_one_worker: Annotated[float | None, TableColumn("/one", 5, ".0%")] = None
    #: Images/s of as many independent processes at the same time, and our share of that; 0 in rows of hosts that were
    #: measured without them.
    ceiling_images_per_s: float = 0.0
    of_ceiling: Annotated[float, TableColumn("/ceil", 5, ".0%")] = 0.0
    #: Digest of the weights at the end of each run, equal for equal jobs; empty in these rows.
    weights_sha256: str = ""
    #: DistributedDataParallel with as many processes; one process with a thread per core, and the same compiled.
    peer: Annotated[BaselineRow | None, replace(TORCH, title="/ddp")] = None
    all_threads: BaselineRow | None = None
    compiled: BaselineRow | None = None
    #: The parts of the mean step of that turn.
    split: Annotated[Split, *split_columns("comp", "exch", "updt", "wait")]
    #: Processor time per step; None if a run was too short to read it twice, or the system does not show it.
    processors: StepProcessorTime | None = None
    #: Bytes of sums and weights that crossed sockets in an average step.
    socket_bytes: float = 0.0

    def short_name(self) -> str:
        """Return the model, a module's function or its file if that is `build`, or the size of one that sleeps."""
        if self.model == SLEEP:
            return short_number(self.parameters)
        file, _, function = self.model.rpartition(":")
        return Path(file).stem if function == "build" else function

    @property
    def is_local(self) -> bool:
        """As of `Machines`."""
        return shares_memory(self.teams, self.servers, self.carrier)

    def subject(self) -> tuple[str | int, ...]:
        """Return the model, its size, its batch and what shared the cores: processes and machines may differ."""
        share = self.micro_batches // (self.workers if self.scaling == "weak" else 1)
        return self.model, self.parameters, self.scaling, self.batch, share, self.busy


def short_number(number: int) -> str:
    """Return a number with three digits and a unit, as `536k`."""
    power = 0 if number < 1000 else 2 if number >= 999_500 else 1
    return f"{number / 1000**power:.3g}{('', 'k', 'M')[power]}"


def _processors(name: str) -> Callable[[ScalingRow], float | None]:
    return lambda row: None if row.processors is None else getattr(row.processors, name)


#: The setup of a row: the first columns of a table below the rows.
WHOSE = (
    TableColumn("model", -6, ".6", of=ScalingRow.short_name),
    TableColumn("batch", 5, of=lambda row: row.batch),
    TableColumn("over", -10, of=lambda row: f"{row.workers}+{row.servers} {row.transport}"),
)

#: The speed of PyTorch with the same batch in one process with all threads: the columns of a table below the rows.
WHOLE_MACHINE = (
    *WHOSE,
    TableColumn("cuts", 4, of=lambda row: row.micro_batches),
    TableColumn("images/s", 9, ",.0f", of=lambda row: row.images_per_s),
    TableColumn("all threads", 11, ",.0f", of=lambda row: row.all_threads and row.all_threads.images_per_s),
    TableColumn("layout", -13, of=lambda row: row.all_threads and row.all_threads.layout),
    TableColumn("/all", 5, ".2f", "x", of=lambda row: row.all_threads and row.all_threads.ratio),
    TableColumn("/comp", 5, ".2f", "x", of=lambda row: row.compiled and row.compiled.ratio),
)

#: The costs of a step: the columns of a second table below the rows.
COSTS = (
    *WHOSE,
    TableColumn("teams", 5, of=lambda row: row.teams),
    TableColumn("ms", 8, ".3f", of=lambda row: row.ms_per_step),
    TableColumn("server ms", 9, ".3f", of=_processors("server_ms")),
    TableColumn("leader ms", 9, ".3f", of=_processors("leader_ms")),
    TableColumn("process ms", 10, ".3f", of=_processors("process_ms")),
    TableColumn("kB", 10, ",.1f", of=lambda row: row.socket_bytes / 1e3),
)


@dataclass(kw_only=True)
class ScalingTrial:
    """A job with one number of micro-batches, its runs by launch and number of teams, and its independent processes."""

    job: Job
    #: The job of each independent process.
    single_job: Job
    runs: dict[tuple[RunOptions, int], list[TimedRun]]
    singles: list[Stepper] = field(default_factory=list)

    def ceiling(self) -> float:
        """Return the images/s of the independent processes together."""
        share = self.single_job.global_batch
        return sum(share / timed_run.mean_step_s(single.seconds()) for single in self.singles)


def _run_each(session: BenchSession, trials: Sequence[ScalingTrial]) -> None:
    for trial in trials:
        session.run_each(trial.job, trial.runs)


@dataclass(kw_only=True)
class ScalingBench(ComparedBench[ScalingRow]):
    """Train with several numbers of processes, as `lockstep train --workers` does, and time the steps.

    Records and checkpoints are written as in any run. The start, the first 20 steps, evaluations and the step after
    each evaluation are not measured. Images/s are those of all other steps in the median turn, slow ones included.

    The processes are one team, or with --teams several, each started by its own `lockstep worker`, as on several hosts.
    With --busy, other processes compute next to all of this, as on a machine that several people use; several
    micro-batches per worker can be shared out among processes by what each gets of its core.

    With --sleep, a model waits instead of computing, so that a machine can stand for one with more cores. A second
    table has the processor time per step of the server, of a leader and of another process, and the kB that crossed
    sockets. It needs runs of a second or more. With as many teams as workers and tcp, each stands for a host; `bench
    predict` calculates more of them from such rows.

    As many independent processes run in turns with the workers; their speed is the ceiling. With --peer-python, so
    does torch: DistributedDataParallel over gloo with as many processes, and one process with a thread per core on the
    whole batch, as it is and compiled. Its faster memory layout counts. For a torch.nn.Module, this is the same module,
    and --peer-python is not needed. The parts of a step are those of an average worker.

    \b
      lockstep bench scaling --model mlp --batch 128 --to scaling.json
      lockstep bench scaling --workers 1..16 --sleep 20ms --values 62000,535818
      lockstep bench scaling --workers 8 --teams 2 --transport tcp
      lockstep bench scaling --workers 1..8 --teams 8 --transport tcp --sleep 20ms
      lockstep bench scaling --model lenet --busy 1 --micro-batches-per-worker 4
      lockstep bench scaling --strong --workers 1,2,4 --plot scaling.png
      lockstep bench scaling --peer-python ~/torch/bin/python
      lockstep bench scaling --model my_net.py:build --data my.npz
    """

    name: ClassVar = "scaling"
    summary: ClassVar = "Several processes: images/s, and where the time goes."
    row: ClassVar = ScalingRow

    models: tuple[str, ...] | None = options.models(
        "--model --models", text="models, as of train", shown="mlp,lenet,cnn"
    )
    sleep_s: float | None = options.option(
        "--sleep", options.duration, "sleep so long for each micro-batch instead of computing", metavar="TIME"
    )
    values: tuple[int, ...] | None = options.option(
        "--values",
        options.Several(whole_number(CLASSES, 2**30)),
        "with --sleep, sizes of the gradient",
        shown="535818, as of mlp",
    )
    data: str = options.option("--data", click.STRING, "data, as of train", "mnist", metavar="DATA")
    batches: tuple[int, ...] | None = options.option(
        "--batch --batches", options.NUMBERS, "batch sizes", shown="32,128; with --sleep, 32"
    )
    workers: tuple[int, ...] = options.workers("1,2")
    teams: tuple[int, ...] = options.option(
        "--teams",
        options.Several(whole_number(1, options.MOST_PROCESSES), has_ranges=True),
        "numbers of teams in which the workers are, as far as there are enough",
        "1",
    )
    transports: tuple[Transport, ...] = options.transports()
    servers: tuple[int, ...] = options.servers("numbers of server processes", "1")
    is_weak: bool = options.option(
        "--weak/--strong",
        click.BOOL,
        "the batch is that of each worker, or of all together (the same job, so the same weights)",
        "yes",
        shown="weak",
    )
    cuts: tuple[int, ...] = options.option(
        "--micro-batches-per-worker",
        options.Several(whole_number(1, 1024)),
        "micro-batches per worker; with --strong, of the largest number of workers",
        "1",
    )
    busy: int = options.option("--busy", whole_number(0, options.MOST_PROCESSES), "other processes that compute", "0")
    steps: int = options.steps("steps to measure", "300")
    rounds: int = options.rounds()

    def measure(self, session: BenchSession) -> Iterator[ScalingRow]:
        rows = list[ScalingRow]()
        for row in self.rows(session):
            rows.append(row)
            yield row
        for columns in (COSTS, WHOLE_MACHINE) if any(row.all_threads is not None for row in rows) else (COSTS,):
            session.say("")
            session.say(" ".join(column.heading() for column in columns))
            for row in rows:
                session.say(" ".join(column.cell(row, "") for column in columns))
        for row in rows if not self.is_weak else ():
            session.say(f"weights sha256  {row.weights_sha256}  {row.model}, {row.workers} {row.transport}")

    def advice(self, rows: Sequence[ScalingRow]) -> str:
        return peers.ADVICE if self.sleep_s is None and all(row.peer is None for row in rows) else ""

    def rows(self, session: BenchSession) -> Iterator[ScalingRow]:
        """Yield each row as soon as it is known, and print nothing."""
        self._check()
        alone = dict[tuple[str | int, ...], float]()
        for subject, batch, workers in product(self._subjects(), self._batches(), sorted(self.workers)):
            for row in self._measure(session, subject, batch, workers):
                setup = (*row.subject(), row.transport, row.servers)
                if workers == 1:
                    alone[setup] = row.images_per_s
                one = alone.get(setup)
                yield row if one is None else replace(row, of_one_worker=row.images_per_s / workers / one)

    def _subjects(self) -> tuple[str | int, ...]:
        """Return the models, or the sizes of the one that sleeps."""
        return (self.models or MEASURED) if self.sleep_s is None else (self.values or (VALUES,))

    def _batches(self) -> tuple[int, ...]:
        return self.batches or ((32, 128) if self.sleep_s is None else (32,))

    def _check(self) -> None:
        """Raise UsageError for what cannot be measured, before measuring anything."""
        self._check_subjects()
        for launch in self._launches(1):
            check_launch(launch)
        for batch, workers in product(self._batches(), self.workers):
            if not self.is_weak and batch % workers:
                raise UsageError(
                    f"a batch of {batch} cannot be divided among {workers} workers: expected a multiple of each of "
                    f"{', '.join(map(str, self.workers))}, so that each has the same share"
                )
            for teams in self._teams(workers):
                if workers % teams:
                    raise UsageError(
                        f"--teams {teams} with {workers} workers: expected a number that divides {workers}, so that "
                        "teams are equal"
                    )

    def _check_subjects(self) -> None:
        if self.sleep_s is None and self.values is not None:
            raise UsageError("--values without --sleep: expected --sleep TIME too, since other models have their size")
        if self.sleep_s is not None and (self.models or self.peer_python):
            flag = "--model" if self.models else "--peer-python"
            raise UsageError(f"--sleep with {flag}: the model that sleeps is one of its own; remove one of the two")
        for subject in self._subjects():
            self._python_of(subject)

    def _teams(self, workers: int) -> list[int]:
        return sorted({min(teams, workers) for teams in self.teams})

    def _launches(self, workers: int) -> list[RunOptions]:
        setups = product(self.servers, self.transports)
        return [RunOptions(workers=workers, servers=servers, transport=transport) for servers, transport in setups]

    def _python_of(self, subject: str | int) -> Path | None:
        """Return the Python under which the baseline trains a model, None if there is no baseline."""
        return None if isinstance(subject, int) else peers.python_for(subject, self.peer_python)

    def _source(self, session: BenchSession, subject: str | int, samples: int) -> dict[str, str]:
        """Return the values of a job that name its model and its data, of which it reads so many samples."""
        if isinstance(subject, str):
            return {"model": subject, "data": session.data(self.data)}
        assert self.sleep_s is not None
        # All of them in one epoch, so that nothing is evaluated in between.
        return sleeping(session.folder, subject, self.sleep_s, samples)

    def _measure(self, session: BenchSession, subject: str | int, batch: int, workers: int) -> Iterator[ScalingRow]:
        """Measure in turns: the job with all launches, independent processes with a share each, the baselines."""
        python = self._python_of(subject)
        global_batch = batch * workers if self.is_weak else batch
        turn = timed_run.per_turn(self.steps, self.rounds)
        values = self._source(session, subject, (WARM_UP + turn) * global_batch)
        trials = [self._trial(values, global_batch, workers, cut, turn) for cut in self.cuts]
        with ExitStack() as stack:
            for trial in trials:
                trial.singles = peers.start_singles(trial.single_job, workers, session.folder, stack)
            trained = peers.BaselineSubject(model=str(subject), data="" if subject in MODELS else trials[0].job.data)
            arguments = trained.arguments("ddp", global_batch // workers, str(workers))
            ddp = peers.start_baselines(python, arguments, stack, trained.layouts())
            all_threads, compiled = peers.start_whole_machine(
                python, trained, global_batch, stack, is_compiling=self.is_compiling, say=session.say
            )
            stack.enter_context(kept_busy(self.busy))
            groups = [*(trial.singles for trial in trials), *([each] for each in (*ddp, *all_threads, *compiled))]
            peers.in_turns(self.rounds, turn, groups, partial(_run_each, session, trials))
        for trial in trials:
            for (launch, teams), runs in trial.runs.items():
                turns, mean = [run.seconds() for run in runs], statistics.mean
                yield replace(
                    self._row(batch, trial, launch, runs),
                    teams=teams,
                    peer=peers.faster(ddp, mean, turns, global_batch),
                    all_threads=peers.faster(all_threads, mean, turns, global_batch),
                    compiled=peers.faster(compiled, mean, turns, global_batch),
                )

    def _trial(self, values: dict[str, str], global_batch: int, workers: int, cut: int, turn: int) -> ScalingTrial:
        micro_batches = cut * (workers if self.is_weak else max(self.workers))
        shared = {"global_batch": global_batch, "micro_batches": micro_batches, "steps": WARM_UP + turn}
        share = {"global_batch": global_batch // workers, "micro_batches": max(1, micro_batches // workers)}
        setups = product(self._launches(workers), self._teams(workers))
        return ScalingTrial(
            job=timed_run.bench_job(**values, **shared),
            single_job=timed_run.bench_job(**values, **share, epochs=10**6),
            runs={setup: [] for setup in setups},
        )

    def _row(self, batch: int, trial: ScalingTrial, launch: RunOptions, runs: list[TimedRun]) -> ScalingRow:
        """Return a row without what it is compared with, but for the independent processes."""
        job, ceiling, result, turns = trial.job, trial.ceiling(), runs[-1].result, [run.seconds() for run in runs]
        step_s = timed_run.mean_step_s(turns)
        speed = job.global_batch / step_s
        return ScalingRow(
            model=job.model_name() if self.sleep_s is None else SLEEP,
            scaling="weak" if self.is_weak else "strong",
            batch=batch,
            workers=launch.workers,
            servers=launch.servers,
            transport=launch.transport,
            carrier=result.transport,
            global_batch=job.global_batch,
            micro_batches=job.micro_batches,
            parameters=result.parameters,
            sleep_s=self.sleep_s or 0.0,
            cores=cores(),
            busy=self.busy,
            steps=len(timed_run.all_seconds(turns)),
            ms_per_step=step_s * 1e3,
            ms_spread=timed_run.spread_ms(turns),
            images_per_s=speed,
            ceiling_images_per_s=ceiling,
            of_ceiling=speed / ceiling,
            weights_sha256=result.weights_sha256,
            split=timed_run.split_of([timed_run.middle_run(runs)]),
            processors=per_step(run.processors for run in runs),
            socket_bytes=statistics.mean(run.socket_bytes() for run in runs),
        )

    def panels(self, rows: Sequence[ScalingRow]) -> list[list[Panel]]:
        """Return two panels per model: images/s next to ceiling and baseline, and the parts of a step."""
        models = dict.fromkeys(row.short_name() for row in rows)
        return [_panels(model, [row for row in rows if row.short_name() == model]) for model in models]


@contextmanager
def kept_busy(processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Let so many processes keep a core busy each, within the context."""
    with ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY])) for _ in range(processes)]
        try:
            yield started
        finally:
            for process in started:
                process.kill()


def _panels(model: str, rows: Sequence[ScalingRow]) -> list[Panel]:
    ceiling = [row.ceiling_images_per_s for row in rows]
    speeds = Panel(
        f"{model}, {rows[0].scaling} scaling: speed, and its share of the ceiling",
        "images/s",
        [
            Series("", "ours", [row.images_per_s for row in rows]),
            Series("ceiling (independent processes)", "ceiling", ceiling, "|"),
            torch_marks(rows, "images_per_s"),
            *whole_machine_marks(rows, "images_per_s"),
        ],
        [f"batch {row.batch}, {described(row, row.teams)}{_cut_text(row)}" for row in rows],
        [f"{row.of_ceiling:.0%}" for row in rows],
        end=1.3,
    )
    return [speeds, Panel("time of a step", "ms", split_series(rows), [""] * len(rows))]


def _cut_text(row: ScalingRow) -> str:
    cut = row.micro_batches // row.workers
    busy = f", {row.busy} busy" if row.busy else ""
    return f", {row.micro_batches} micro-batches{busy}" if cut > 1 else busy
