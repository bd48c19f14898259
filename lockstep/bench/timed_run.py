"""Run jobs on clusters of processes, and read the times and the processor time of their steady steps."""

import os
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from lockstep.bench.peers import WARM_UP
from lockstep.common.data.source import load
from lockstep.common.errors import RunError
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.launch.chaos import Interference
from lockstep.launch.cluster import Cluster
from lockstep.launch.process_backend import LocalBackend, run_folder
from lockstep.launch.run_starter import RunStarter
from lockstep.launch.supervision.restarts import Role
from lockstep.ps.records.ledger import Line
from lockstep.ps.records.metrics import StepRecord, read_metrics
from lockstep.ps.records.run_folder import RunResult, read_ledger
from lockstep.ps.run.progress import Split, StepTimeTotals
from lockstep.results.display import print_plainly
from lockstep.runs.job_file import resolve
from lockstep.runs.session import Destination

#: The folder in which the system shows its processes.
PROC = Path("/proc")

#: Part of a run after which it runs evenly, and steps over which a difference says something.
EVEN, FEWEST_STEPS = 0.25, 8


class TeamRole(Enum):
    """The role of a process in a run."""

    SERVER = auto()
    LEADER = auto()
    PROCESS = auto()


class StepProcessorTime(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of processor time per step."""

    server_ms: float
    #: Of an average leader, and of an average other process of a team; None without one.
    leader_ms: float | None
    process_ms: float | None


#: Seconds of processor time that processes took since they began, by their roles and numbers, after so many steps.
Reading = tuple[int, Mapping[tuple[TeamRole, int], float]]


@dataclass
class ProcessorClock:
    """Reads the processor time of a run's processes with each status; keeps the first that counts, and the last."""

    proc: Path = PROC
    first: Reading | None = None
    last: Reading | None = None

    def on_status(self, status: Status, pids: Mapping[TeamRole, Iterable[int]]) -> None:
        """Read the processes of each role, unless the run has just begun or is over."""
        if not max(WARM_UP, EVEN * status.steps) <= status.step < status.steps:
            return
        times = {(role, pid): seconds_of(self.proc, pid) for role, numbers in pids.items() for pid in numbers}
        reading = status.step, {process: seconds for process, seconds in times.items() if seconds is not None}
        self.first, self.last = self.first or reading, reading


def seconds_of(proc: Path, pid: int) -> float | None:
    """Return the processor time of a process, by itself and by the system for it; None if it is gone."""
    try:
        _, _, rest = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
        user, system = rest.split()[11:13]  # the 14th and 15th field of proc(5)
    except (OSError, ValueError):
        return None
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def per_step(clocks: Iterable[ProcessorClock]) -> StepProcessorTime | None:
    """Return the processor time of an average step over several runs; None if it was not read twice in any."""
    steps, taken = 0, defaultdict[TeamRole, float](float)
    for clock in clocks:
        if clock.first is None or clock.last is None or (made := clock.last[0] - clock.first[0]) < FEWEST_STEPS:
            continue
        steps += made
        for role, seconds in _taken(clock.first[1], clock.last[1]).items():
            taken[role] += seconds
    if not steps or TeamRole.SERVER not in taken:
        return None
    mean = {role: 1e3 * seconds / steps for role, seconds in taken.items()}
    return StepProcessorTime(
        server_ms=mean[TeamRole.SERVER], leader_ms=mean.get(TeamRole.LEADER), process_ms=mean.get(TeamRole.PROCESS)
    )


def _taken(
    first: Mapping[tuple[TeamRole, int], float], last: Mapping[tuple[TeamRole, int], float]
) -> dict[TeamRole, float]:
    """Return what an average process of each role took between two readings, of those that were there in both."""
    differences = defaultdict[TeamRole, list[float]](list)
    for (role, pid), seconds in last.items():
        if (role, pid) in first:
            differences[role].append(seconds - first[role, pid])
    return {role: sum(values) / len(values) for role, values in differences.items()}


#: Test images: few, because evaluations are not measured.
TEST_SAMPLES = 64


class TimedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The records of a run."""

    result: RunResult
    steps: Sequence[StepRecord]
    ledger: Sequence[Line] = ()
    #: The processor time of its processes.
    processors: ProcessorClock = msgspec.field(default_factory=ProcessorClock)

    def counted(self) -> Iterator[tuple[StepRecord, bool]]:
        """Yield the steps, and whether each counts: not the warm-up, and not the step after an evaluation."""
        before = 0
        for step in self.steps:
            yield step, step.step >= WARM_UP and step.epoch == before
            before = step.epoch

    def seconds(self) -> list[float]:
        """Return the seconds of the steps that count."""
        return [step.round_s for step, counts in self.counted() if counts]

    def socket_bytes(self) -> float:
        """Return the bytes of sums and weights that crossed sockets in an average step that counts."""
        return statistics.mean(step.sums_bytes + step.weights_bytes for step, counts in self.counted() if counts)


@dataclass
class BenchSession:
    """The surroundings of a bench: a console for its report, and a folder that is removed afterwards."""

    folder: Path
    console: Console
    clock: Clock = field(default_factory=SystemClock)
    #: Digests of the weights that each job gave, by the digest of the job.
    _weights: dict[str, str] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Print a line for a person."""
        print_plainly(self.console, text)

    def run(
        self, job: Job, launch: RunOptions, interference: Interference | None = None, *, teams: int = 1
    ) -> TimedRun:
        """Run a job once, with the workers of a launch in so many teams. RunError if it gave other weights before."""
        run_dir, processors = self.folder / "run", ProcessorClock()
        destination, backend = Destination(folder=run_dir, options=launch), LocalBackend(launch)
        if teams > 1:
            backend.team_size = launch.workers // teams

        def watch(status: Status) -> None:
            server, workers = cluster.crew.at(Role.SERVER)[0], [each.pid for each in cluster.crew.at(Role.WORKER)]
            leaders = workers[:: backend.team_size]
            others = [pid for pid in workers if pid not in leaders]
            pids = {TeamRole.SERVER: [server.pid], TeamRole.LEADER: leaders, TeamRole.PROCESS: others}
            processors.on_status(status, pids)

        try:
            with run_folder() as folder:
                starter = RunStarter(job, destination, backend, folder)
                cluster = Cluster(starter, self.say, watch, SystemClock(), interference)
                result = cluster.run()
            steps, ledger = read_metrics(run_dir).steps, read_ledger(run_dir)
            run = TimedRun(result=result, steps=steps, ledger=ledger, processors=processors)
        finally:
            shutil.rmtree(run_dir, ignore_errors=True)
        before = self._weights.setdefault(job.digest(), result.weights_sha256)
        if before != result.weights_sha256:
            raise RunError(
                f"one job gave the weights {before[:12]}… and {result.weights_sha256[:12]}…, the latter with "
                f"{result.workers} workers over {result.transport}: expected the same bits; please report this"
            )
        return run

    def run_each(self, job: Job, runs: Mapping[tuple[RunOptions, int], list[TimedRun]]) -> None:
        """Run a job once with each launch and number of teams, and append to its runs."""
        for (launch, teams), done in runs.items():
            done.append(self.run(job, launch, teams=teams))

    def data(self, name: str = "mnist") -> str:
        """Return the path of MNIST, or other data, with fewer test samples."""
        path = self.folder / "digits.npz"
        if not path.exists():
            data = load(name)
            train, test = data.train, data.test
            x_test, y_test = test.images[:TEST_SAMPLES], test.labels[:TEST_SAMPLES]
            np.savez(path, x_train=train.images[:], y_train=train.labels, x_test=x_test, y_test=y_test)
        return str(path)


def bench_job(**values: Any) -> Job:
    """Return the job of these values, with the momentum of the baseline."""
    job, _ = resolve({"lr": 0.01, "momentum": 0.9, **values}, {})
    return job


def per_turn(steps: int, rounds: int) -> int:
    """Return the steps of one turn, of at least `steps` in all turns."""
    return -(-steps // rounds)


def times_of(measured: Callable[[], object], repeats: int, clock: Clock) -> list[float]:
    """Return the seconds that each of several calls took."""
    times = []
    for _ in range(repeats):
        start = clock.now()
        measured()
        times.append(clock.now() - start)
    return times


def all_seconds(turns: Sequence[Sequence[float]]) -> list[float]:
    """Return the seconds of the steps of all turns."""
    return [second for turn in turns for second in turn]


def middle_s(turns: Sequence[Sequence[float]], step_s: Callable[[Sequence[float]], float]) -> float:
    """Return the seconds of a step in the middle turn, or in the slower one of two in the middle.

    `step_s` gives the seconds of a step in a turn. One disturbed turn in three does not count.
    """
    return statistics.median_high(map(step_s, turns))


def spread_ms(
    turns: Sequence[Sequence[float]], step_s: Callable[[Sequence[float]], float] = statistics.mean
) -> tuple[float, float]:
    """Return the milliseconds of a step in the fastest and in the slowest turn."""
    seconds = [step_s(turn) for turn in turns]
    return min(seconds) * 1e3, max(seconds) * 1e3


def mean_step_s(turns: Sequence[Sequence[float]]) -> float:
    """Return the seconds of a mean step in the middle turn.

    The mean, because the images/s of a run are those of all its steps, of slow ones too: in 36 runs of 400 steps on a
    busy machine the median step was 6 % faster.
    """
    return middle_s(turns, statistics.mean)


def middle_run(runs: Sequence[TimedRun]) -> TimedRun:
    """Return the run whose mean step is that of `mean_step_s`."""
    turns = [run.seconds() for run in runs]
    return runs[[statistics.mean(turn) for turn in turns].index(mean_step_s(turns))]


def split_of(runs: Sequence[TimedRun], low: float = 0.0, high: float = float("inf")) -> Split:
    """Return where the time went in the steps that count, of those that took `low` to `high` seconds."""
    book = StepTimeTotals()
    for run in runs:
        for step, counts in run.counted():
            book.add(step.time(), step.update_s, is_counted=counts and low <= step.round_s <= high)
    split = book.split()
    assert split is not None  # a run has at least one step that counts
    return split


def undisturbed_split(runs: Sequence[TimedRun]) -> Split:
    """Return where the time went in the steps between the quartiles, so that disturbances are left out."""
    low, _, high = statistics.quantiles(all_seconds([run.seconds() for run in runs]), n=4, method="inclusive")
    return split_of(runs, low, high)


def least_s(measured: Callable[[], object], repeats: int, clock: Clock) -> float:
    """Return the seconds of the fastest of several calls."""
    return min(times_of(measured, repeats, clock))
