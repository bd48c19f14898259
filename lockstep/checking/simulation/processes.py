"""The real shells as processes of the world: server, shard, leader and other processes of a team; and servers' disk."""

import errno
import os
from abc import ABC
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from lockstep.checking.simulation.jobs import load
from lockstep.checking.simulation.team import MICRO_BATCH_S, Hall, SimulatedMember, TickingFolder
from lockstep.checking.simulation.world import Process, SimulatedShell
from lockstep.common.data.dataset import TrainTest
from lockstep.common.files.atomic import write_atomically
from lockstep.common.job.job import Job
from lockstep.common.model.source import ModelSource
from lockstep.common.statemachine.client import ClientConfig, Exit
from lockstep.common.transport.in_memory import ADDRESS, MemoryNetwork
from lockstep.common.transport.links import wait_for_nothing
from lockstep.launch.client import shard_join, worker_join
from lockstep.launch.serve import open_server
from lockstep.ps.checkpoint.resuming import Resumption, coordinator_of
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.recorder import Setting
from lockstep.ps.run.info import RunInfo
from lockstep.ps.server.server import Server
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard_process.shell import ShardShell
from lockstep.ps.shard_process.state import ShardState
from lockstep.ps.shared_memory.memory import ServerSharedMemory, share
from lockstep.runs.launch_config import Launch
from lockstep.runs.run_dir import has_begun
from lockstep.runs.session import Destination, RunSession
from lockstep.worker.setup import BuildModel, Loader
from lockstep.worker.shell import WorkerShell
from lockstep.worker.state import WorkerState
from lockstep.worker.team.helper import INTERRUPTED, TeamProcess
from lockstep.worker.team.progress import PATIENT, Patience
from lockstep.worker.team.session import Surroundings

RUN = "simulated"

#: Seconds after which a silent server counts as lost.
SILENCE_S = 30.0

#: Seconds of an action of a server, if it is slow, for each time that it is as slow as that.
SLOW_SERVER_S = 0.001

#: Steps before the first multi-step lease, and until the next after one that was cut, at first: a run has few.
NO_FIRST_STEPS, SHORT_PAUSE = 0, 1

Say = Callable[[str], None]


@dataclass
class Disk:
    """The disk that all servers of a run write to, one after the other: real files, until it is full."""

    is_full: bool = False

    def check(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class DiskWriter:
    """The access of one process to the disk."""

    disk: Disk
    process: Process
    #: Whether the process has ended: what it still had in its memory is lost.
    is_over: bool = False

    def attach(self, session: RunSession) -> None:
        """Write what a run's session has to write."""
        checkpointer = session.checkpointer
        checkpointer.folder.write = self.write_file
        for lines in (checkpointer.run.metrics, checkpointer.run.ledger):
            lines.write = self.write_lines

    def write_lines(self, descriptor: int, lines: bytes) -> int:
        """Write to an open file, as `os.write` does, in two parts, between which the process may be killed."""
        if self.is_over:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.process.tick()
        self.disk.check()
        half = os.write(descriptor, lines[: len(lines) // 2])
        self.process.tick()
        return half + os.write(descriptor, lines[half:])

    def write_file(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file, as `write_atomically` does."""
        self.process.tick()
        self.disk.check()
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        held = [bytes(part) for part in parts]
        partial.write_bytes(held[0])
        # A process that is killed here leaves a part next to the old file.
        self.process.tick()
        write_atomically(path, held)
        self.process.tick()


@dataclass(frozen=True)
class Parts:
    """The parts of a run; a test replaces one by a part with a bug, to show that it is found."""

    coordinator: Callable[[RunInfo, Resumption], Coordinator] = lambda info, start: coordinator_of(
        info, start, first_steps=NO_FIRST_STEPS
    )
    shard: Callable[[Shard], Shard] = lambda shard: shard
    server: Callable[[Server], Server] = lambda server: server
    worker: Callable[[WorkerShell], WorkerShell] = lambda worker: worker
    #: What makes a worker one process of its team.
    member: type[SimulatedMember] = SimulatedMember
    #: Number among all processes -> how that worker gets its data.
    load: Callable[[int], Loader] = lambda number: load


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """What all processes of a run are started with."""

    job: Job
    data: TrainTest
    admission: AdmissionPolicy
    launch: Launch
    folder: Path
    #: The folder of shared memory.
    root: Path
    network: MemoryNetwork
    parts: Parts
    #: Cores of the machine that all workers are on, and how long the processes of a team wait for one another.
    cores: int
    patience: Patience = PATIENT
    #: Where workers keep the samples that they receive if they have no data, None to accept none.
    cache: Path | None = None
    #: What builds the model of a process.
    build: BuildModel = ModelSource.build
    disk: Disk = field(default_factory=Disk)


@dataclass
class ServerProcess(SimulatedShell):
    """The server and the run's session."""

    server: Server
    session: RunSession
    writer: DiskWriter
    sharing: ServerSharedMemory | None

    @classmethod
    def open(cls, run: SimulatedRun, process: Process, say: Say, *, shares: bool) -> Self:
        """Open the run, new or resumed, as `lockstep server` does.

        The process may be killed at any report: what has been opened until then is closed again.
        """
        destination = Destination(folder=run.folder, launch=run.launch, is_resumed=has_begun(run.folder))
        setting = Setting(servers=run.admission.servers, transport="memory", started=process.now())
        setup, sharing = open_run(RUN, run.job, run.data, run.admission), None
        with ExitStack() as stack:
            if shares:
                setup, sharing = share(setup, run.root)
                sharing.folder, sharing.keep_order = TickingFolder.of(sharing.folder, process.tick), process.tick
                stack.callback(sharing.close)
            port = run.network.server(ADDRESS, process)
            stack.callback(port.close)
            setup = replace(setup, shard=run.parts.shard(setup.shard))
            server, session = open_server(
                setup,
                destination,
                setting,
                port,
                process,
                say,
                sharing,
                coordinator_at=run.parts.coordinator,
            )
            server.coordinator.multi_step.pause = SHORT_PAUSE
            writer = DiskWriter(run.disk, process)
            writer.attach(session)
            stack.pop_all()
        return cls(run.parts.server(server), session, writer, sharing)

    def step(self) -> bool:
        is_busy = self.server.step()
        self.server.coordinator.validate()
        self.server.group.state.validate()
        self.server.multi_step.state.validate()
        assert self.server.multi_step.is_any() or self.server.coordinator.phase is not RunPhase.MULTI_STEP
        return is_busy

    def deadline(self) -> float | None:
        return self.server.deadline()

    def cost_s(self) -> float:
        """Return the seconds that an action takes beside its ticks: a server is slow only if it was made so."""
        return SLOW_SERVER_S if self.writer.process.slowness > 1.0 else 0.0

    def weights_step(self) -> int | None:
        return self.server.shard.updates

    def exit_reason(self) -> str | None:
        return None if self.server.ended is None else self.server.ended.failure

    def interrupt(self) -> None:
        self.server.interrupt()

    def close(self) -> None:
        """End the process; what a killed one has not written is lost, and others find room on the disk."""
        self.writer.disk.is_full = False
        if self.server.ended is None:
            self.writer.is_over = True
        self.server.port.close(1.0)
        self.session.recorder.close()
        if self.sharing is not None:
            self.sharing.close()


@dataclass
class NodeProcess(SimulatedShell, ABC):
    """A process that joins the run."""

    runner: WorkerShell | ShardShell

    def exit_reason(self) -> str | None:
        return None if self.runner.ended is None else self.runner.ended.reason

    def interrupt(self) -> None:
        self.runner.interrupt()

    def close(self) -> None:
        self.runner.close()


@dataclass
class ShardProcess(NodeProcess):
    """A shard."""

    runner: ShardShell

    @classmethod
    def open(cls, run: SimulatedRun, process: Process, number: int, say: Say, *, shares: bool) -> Self:
        address = f"memory://{process.name}"
        join = shard_join(worker_join(process.name, "host", number), address)
        runner = ShardShell(
            ShardState(ClientConfig(address=ADDRESS, join=join, silence_s=SILENCE_S)),
            run.network.server(address, process),
            run.network.client(ADDRESS, process),
            process,
            say,
            wait_for_nothing,
            run.root if shares else None,
        )
        runner.begin()
        return cls(runner)

    def step(self) -> bool:
        is_busy = self.runner.step()
        self.runner.state.validate()
        return is_busy

    def deadline(self) -> float | None:
        return self.runner.state.deadline()


@dataclass
class WorkerProcess(NodeProcess):
    """A worker: the leader of a team, or its only process."""

    runner: WorkerShell

    @classmethod
    def open(
        cls, run: SimulatedRun, process: Process, number: int, say: Say, *, shares: bool, hall: Hall | None = None
    ) -> Self:
        """Open a worker, which leads the team that meets in a hall."""
        processes = 1 if hall is None else hall.processes
        join = worker_join(process.name, "host", number, "host", range(run.cores), processes)
        runner = WorkerShell(
            WorkerState(ClientConfig(address=ADDRESS, join=join, silence_s=SILENCE_S)),
            run.network.client(ADDRESS, process),
            process,
            run.parts.load(number),
            say,
            run.root if shares else None,
            lambda address: run.network.client(address, process),
            wait_for_nothing,
            cache=run.cache,
            meeting=None if hall is None or processes == 1 else hall.enter(0, process),
            patience=run.patience,
            roots=(run.root,),
            kind=run.parts.member,
            build=run.build,
        )
        runner = run.parts.worker(runner)
        try:
            runner.begin()
        except BaseException:
            runner.close()
            raise
        return cls(runner)

    def step(self) -> bool:
        return self.runner.step()

    def weights_step(self) -> int | None:
        return self.runner.state.weights_step

    def deadline(self) -> float | None:
        """Return when it has something to do; with its team at work, a moment that is past: it waits by itself."""
        state = self.runner.state
        return state.client.heard if state.is_busy() else self.runner.deadline()

    def cost_s(self) -> float:
        """Return the seconds of a micro-batch, if one is about to be computed here."""
        return MICRO_BATCH_S if self.runner.state.has_work() else 0.0


@dataclass
class HelperProcess(SimulatedShell):
    """Another process of a team."""

    runner: TeamProcess
    process: Process
    hall: Hall

    @classmethod
    def open(cls, run: SimulatedRun, process: Process, number: int, say: Say, hall: Hall, place: int) -> Self:
        """Open the process of a team with that number in it."""
        meeting = hall.enter(place, process)
        around = Surroundings(
            clock=process,
            say=say,
            patience=run.patience,
            root=None,
            roots=(run.root,),
            meeting=meeting,
            kind=run.parts.member,
        )
        return cls(TeamProcess(around, meeting, run.parts.load(number), run.cache, run.build), process, hall)

    def step(self) -> bool:
        return self.runner.step()

    def leader(self) -> Process | None:
        """Return the process that leads its team, None if that is gone."""
        return self.hall.present.get(0)

    def deadline(self) -> float | None:
        """Return a moment that is past: it waits by itself."""
        return self.process.ahead_s

    def exit_reason(self) -> str | None:
        return None if self.runner.ended is None else self.runner.ended.reason

    def interrupt(self) -> None:
        self.runner.ended = Exit(code=INTERRUPTED, reason="")

    def close(self) -> None:
        self.runner.close()
