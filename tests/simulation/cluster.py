"""A run in the simulator as a test wants it: any job and data, and processes that come, stop and end as it says."""

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Self, TypeVar

from msgspec.structs import replace

from lockstep.common.data.dataset import TrainTest
from lockstep.common.job.job import Job
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.statemachine.client import Exit
from lockstep.common.transport.in_memory import MemoryNetwork
from lockstep.common.transport.shared_memory.folder import shared_root
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.shard.shell import ShardShell
from lockstep.worker.setup import Loader
from lockstep.worker.shell import WorkerShell
from tests.simulation.simulator.oracle import RunRecords, violations
from tests.simulation.simulator.processes import Parts, ServerProcess, ShardProcess, SimulatedRun, WorkerProcess
from tests.simulation.simulator.world import Process, World
from tests.simulation.small import digits

#: Events after which a run counts as stuck, and seconds within which what is under way goes on.
LIMIT, SOON_S = 20_000, 0.05

Shell = TypeVar("Shell", WorkerShell, ShardShell)


@dataclass(eq=False)
class Member(Generic[Shell]):
    """A worker or a shard, and the process that it is."""

    process: Process
    runner: Shell

    def die(self) -> None:
        self.process.end(is_killed=True)


@dataclass(eq=False)
class Simulation:
    """One run, whose network and clocks lose no time: the seed decides who acts next of those that can."""

    job: Job
    seed: int = 0
    options: RunOptions = field(default_factory=RunOptions)
    data: Callable[[], TrainTest] = digits
    #: The run's folder, in which it is resumed if it has begun there; None for one that goes with the simulation.
    folder: Path | None = None
    #: The folder of the memory that is shared, None if none is.
    root: Path | None = None
    parts: Parts = field(default_factory=Parts)
    cores: int = 1
    #: What is printed by the server, and by others.
    said: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    workers: list[Member[WorkerShell]] = field(default_factory=list)
    shards: list[Member[ShardShell]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.folder is None:
            made = Path(tempfile.mkdtemp(prefix="lockstep-simulation-", dir=shared_root()))
            weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
            self.folder = made / "run"
        self.world, self._rng = World(tick_s=0.0), generator(self.seed, Purpose.SHUFFLE, layer=2)
        self.network = MemoryNetwork(self.seed, timeline=self.world)
        self.started = SimulatedRun(
            job=self.job,
            data=self.data(),
            options=self.options,
            folder=self.folder,
            root=self.root or self.folder,
            network=self.network,
            parts=self.parts,
            cores=self.cores,
        )
        process = Process("server", self.world)
        shares = self.root is not None
        process.start(lambda: ServerProcess.open(self.started, process, self.said.append, shares=shares))
        assert isinstance(process.shell, ServerProcess)
        self.process, self.server, self.sharing = process, process.shell.server, process.shell.sharing
        self.opening, self.recorder = process.shell.setup, self.server.recorder
        for _ in range(self.options.servers - 1):
            self.add_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for process in list(self.world.processes):
            process.end(is_killed=True)

    def add_shard(self) -> Member[ShardShell]:
        """Start a shard."""
        number = len(self.shards)
        process = Process(f"shard-{number}", self.world)
        process.start(lambda: ShardProcess.open(self.started, process, number, self.heard.append))
        assert isinstance(process.shell, ShardProcess)
        self.shards.append(Member(process, process.shell.runner))
        return self.shards[-1]

    def add_worker(
        self, *, load: Loader | None = None, shares: bool = True, cache: Path | None = None
    ) -> Member[WorkerShell]:
        """Start a worker, which loads the run's data unless told otherwise."""
        number, shares = len(self.workers), self.root is not None and shares
        parts = replace(self.parts, load=lambda number: load or (lambda name: self.started.data))
        run = replace(self.started, parts=parts, cache=cache)
        process = Process(f"worker-{number}", self.world)
        process.start(lambda: WorkerProcess.open(run, process, number, self.heard.append, shares=shares))
        assert isinstance(process.shell, WorkerProcess)
        self.workers.append(Member(process, process.shell.runner))
        return self.workers[-1]

    def turn(self) -> bool:
        """Let the next process act."""
        self._rng.shuffle(self.world.processes)
        for process in self.world.processes:
            process.reschedule()
        return self.world.turn()

    def advance(self, seconds: float) -> None:
        """Let time pass in which nobody acts."""
        self.world.now += seconds

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Act until the run has ended, or `until` holds."""
        for _ in range(LIMIT):
            if self.server.ended is not None or until():
                return
            assert self.turn(), "nobody acts, and nobody waits"
        raise AssertionError(f"the run is stuck: {self.said[-3:]}")

    def run_to(self, step: int) -> None:
        """Act until the run is at a step."""
        self.run(until=lambda: self.server.coordinator.round.step >= step)

    def run_until_quiet(self) -> None:
        """Act until nobody has anything to do soon."""
        while any(process.due <= self.world.now + SOON_S for process in self.world.processes):
            self.turn()

    def wait(self, seconds: int) -> None:
        """Let time pass, second by second: in a longer leap all would take their machine for one that has slept."""
        for _ in range(seconds):
            self.advance(1.0)
            self.run_until_quiet()

    def finish(self) -> str:
        """Run to the end, which has to be a good one; return the digest of the weights."""
        self.run()
        assert self.server.ended == Finish(), self.server.ended
        return self.result().weights_sha256

    def result(self) -> RunResult:
        """Return the result of a run that has ended."""
        assert self.recorder.result is not None
        return self.recorder.result

    def prove(self, reference: RunRecords) -> None:
        """Run to the end: the weights and all records are those of one process, and all who act end well."""
        self.finish()
        assert list(violations(self.job, self.started.data, self.started.folder, reference)) == []
        self.run_until_quiet()
        everybody: list[Member[WorkerShell] | Member[ShardShell]] = [*self.workers, *self.shards]
        ended = [one.runner.ended for one in everybody if not one.process.is_stopped]
        assert all(end is None or end == Exit(code=0, reason="") for end in ended)
        assert not self.network.clients or any(one.process.is_stopped for one in everybody)


def prove(job: Job, reference: RunRecords, workers: int, seed: int, servers: int = 1) -> None:
    """Prove a run with as many workers from the start."""
    simulation = Simulation(job, seed, RunOptions(min_workers=workers, servers=servers))
    for _ in range(workers):
        simulation.add_worker()
    simulation.prove(reference)
