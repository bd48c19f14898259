"""The real shells as processes of the world: server, shard, leader and other processes of a team; and servers' disk."""

import errno
import os
from abc import ABC
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import msgspec
from msgspec.structs import replace

from lockstep.common.data.dataset import TrainTest
from lockstep.common.errors import RESUMED_HERE, FailureKind
from lockstep.common.files.atomic import write_atomically
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Join
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.statemachine.client import ClientConfig, Exit
from lockstep.common.transport.in_memory import ADDRESS, MemoryNetwork
from lockstep.common.transport.port import ClientPort, Dial, ServerPort, wait_for_nothing
from lockstep.launch.client import shard_join, worker_join
from lockstep.launch.serve import open_server
from lockstep.launch.supervision.supervisor import RunSupervisor
from lockstep.ps.checkpoint.resuming import Resumption, coordinator_of
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.parts.assembly import part_of
from lockstep.ps.coordinator.parts.multi_step import MultiStep
from lockstep.ps.records.recorder import Setting
from lockstep.ps.run.info import RunInfo
from lockstep.ps.server.factory import ServerContext
from lockstep.ps.server.server import STOPPED, Server
from lockstep.ps.server.shared_memory import ServerSharedMemory, share
from lockstep.ps.setup import RunSetup, open_run
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard.shell import ShardShell
from lockstep.ps.shard.state import ShardState
from lockstep.runs.run_dir import has_begun
from lockstep.runs.session import Destination, RunSession
from lockstep.runs.single_process import recompute_micro_batch
from lockstep.worker.connections import ServerConnections
from lockstep.worker.setup import Loader, gather
from lockstep.worker.shell import WorkerShell
from lockstep.worker.state import WorkerState
from lockstep.worker.team.helper import INTERRUPTED, TeamProcess
from lockstep.worker.team.progress import PATIENT, Patience
from lockstep.worker.team.session import TeamContext
from tests.simulation.simulator.jobs import data
from tests.simulation.simulator.strand import Killed
from tests.simulation.simulator.team import MICRO_BATCH_S, Hall, SimulatedMember, TickingFolder
from tests.simulation.simulator.world import Process, SimulatedShell

RUN = "simulated"

#: Seconds after which a silent server counts as lost.
SILENCE_S = 30.0

#: Seconds of an action of a server, if it is slow, for each time that it is as slow as that.
SLOW_SERVER_S = 0.001

#: Steps before the first multi-step lease, and until the next after one that was cut, at first: a run has few.
NO_FIRST_STEPS, SHORT_PAUSE = 0, 1

#: The exit codes of a server, by how its part of the run has ended; 1 in other cases.
EXIT_CODES = {None: 0, FailureKind.STOPPED: INTERRUPTED}

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


class Parts(msgspec.Struct, frozen=True):
    """The parts of a run; a test replaces one by a part with a bug, to show that it is found."""

    coordinator: Callable[[RunInfo, Resumption], Coordinator] = lambda info, start: coordinator_of(
        info, start, first_steps=NO_FIRST_STEPS
    )
    shard: Callable[[Shard], Shard] = lambda shard: shard
    server: Callable[[Server], Server] = lambda server: server
    worker: Callable[[WorkerShell], WorkerShell] = lambda worker: worker
    #: Makes a worker one process of its team.
    member: type[SimulatedMember] = SimulatedMember
    #: Decides which processes are restarted.
    supervisor: type[RunSupervisor] = RunSupervisor
    #: Number among all processes -> how that worker gets its data.
    load: Callable[[int], Loader] = lambda number: data


class SimulatedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The values with which all processes of a run are started."""

    job: Job
    data: TrainTest
    options: RunOptions
    folder: Path
    #: The folder of shared memory.
    root: Path
    network: MemoryNetwork
    parts: Parts
    #: Cores of the machine that all workers are on, and how long the processes of a team wait for one another.
    cores: int
    patience: Patience = PATIENT
    #: The folder in which workers without data keep the samples that they receive, None to accept none.
    cache: Path | None = None
    disk: Disk = msgspec.field(default_factory=Disk)


@dataclass
class ServerProcess(SimulatedShell):
    """The server and the run's session."""

    server: Server
    setup: RunSetup
    session: RunSession
    writer: DiskWriter
    sharing: ServerSharedMemory | None

    run: SimulatedRun
    say: Say
    shares: bool

    @classmethod
    def open(
        cls,
        run: SimulatedRun,
        process: Process,
        say: Say,
        *,
        shares: bool,
        port: ServerPort | None = None,
    ) -> Self:
        """Open the run, new or resumed, as `lockstep server` does, at its address or at a port that is open already.

        The process may be killed at any report. Everything that it has opened by then is closed again.
        """
        setup, sharing = open_run(RUN, run.job, run.data, run.options), None
        with ExitStack() as stack:
            if shares and run.options.servers == 1:
                setup, sharing = share(setup, run.root)
                sharing.folder, sharing.keep_order = TickingFolder.of(sharing.folder, process.tick), process.tick
                stack.callback(sharing.close)
            port = run.network.server(ADDRESS, process) if port is None else port
            stack.callback(port.close)
            context = ServerContext(port, process, say, sharing=sharing, recompute=recompute_micro_batch)
            setup = replace(setup, shard=run.parts.shard(setup.shard))
            server, session = cls._open_session(run, process, setup, context)
            writer = DiskWriter(run.disk, process)
            writer.attach(session)
            stack.pop_all()
        return cls(run.parts.server(server), setup, session, writer, sharing, run, say, shares)

    @staticmethod
    def _open_session(
        run: SimulatedRun, process: Process, setup: RunSetup, context: ServerContext
    ) -> tuple[Server, RunSession]:
        destination = Destination(
            folder=run.folder,
            options=run.options,
            is_resumed=has_begun(run.folder),
            # As no other part: a process has one name, and its time passes.
            part=f"{process.name} at {process.now():.6f}",
        )
        setting = Setting(transport="memory", started=process.now())
        server, session = open_server(setup, destination, setting, context, run.parts.coordinator)
        part_of(server.coordinator, MultiStep).plan.pause = SHORT_PAUSE
        return server, session

    def step(self) -> bool:
        try:
            is_busy = self.server.step()
        except OSError:
            if self.run.folder.exists():
                raise
            raise Killed from None  # its folder was deleted: a server ends when it cannot write the result
        ended = self.server.ended
        if ended is not None and ended.kind in RESUMED_HERE:
            self.run = replace(self.run, options=replace(self.run.options, min_workers=1))
            self._open_again()
        self.server.coordinator.validate()
        self.server.group.validate()
        part_of(self.server.coordinator, MultiStep).validate()
        return is_busy

    def deadline(self) -> float | None:
        return self.server.deadline()

    def _open_again(self) -> None:
        """Resume the run from its last checkpoint, in this process."""
        if not has_begun(self.run.folder):
            raise Killed  # its folder was deleted: a server ends if it cannot open that again
        self.session.recorder.close()
        if self.sharing is not None:
            sharing, self.sharing = self.sharing, None
            sharing.close()
        process, outbox = self.writer.process, self.server.outbox
        new = ServerProcess.open(self.run, process, self.say, shares=self.shares, port=outbox.port)
        self.server, self.setup, self.session = new.server, new.setup, new.session
        self.writer, self.sharing = new.writer, new.sharing

    def cost_s(self) -> float:
        """Return the seconds that an action takes besides its ticks, 0 unless the server was made slow."""
        return SLOW_SERVER_S if self.writer.process.ticks.slowness > 1.0 else 0.0

    def weights_step(self) -> int | None:
        return self.server.shard.updates

    def exit(self) -> Exit | None:
        ended = self.server.ended
        if ended is None:
            return None
        return Exit(code=EXIT_CODES.get(ended.kind, 1), reason=ended.failure, kind=ended.kind)

    def interrupt(self) -> None:
        self.server.interrupt(STOPPED)

    def close(self) -> None:
        """End the process; what a killed one has not written is lost, and others find room on the disk."""
        self.writer.disk.is_full = False
        if self.server.ended is None:
            self.writer.is_over = True
        self.server.outbox.port.close(1.0)
        self.session.recorder.close()
        if self.sharing is not None:
            self.sharing.close()


def server_of(process: Process) -> ServerProcess | None:
    """Return the server that a process is, None if it is none."""
    return process.shell if isinstance(process.shell, ServerProcess) else None


@dataclass
class NodeProcess(SimulatedShell, ABC):
    """A process that joins the run."""

    runner: WorkerShell | ShardShell

    def exit(self) -> Exit | None:
        return self.runner.ended

    def interrupt(self) -> None:
        self.runner.interrupt()

    def close(self) -> None:
        self.runner.close()


def config_of(join: Join | ShardJoin) -> ClientConfig:
    """Return how a process finds the server of a run."""
    return ClientConfig(address=ADDRESS, join=join, silence_s=SILENCE_S)


def dialler(run: SimulatedRun, process: Process) -> Dial:
    """Return how a process reaches another one: keys do not exist here."""

    def dial(address: str) -> ClientPort:
        return run.network.client(address, process)

    return dial


@dataclass
class ShardProcess(NodeProcess):
    """A shard."""

    runner: ShardShell

    @classmethod
    def open(cls, run: SimulatedRun, process: Process, number: int, say: Say) -> Self:
        address = f"memory://{process.name}"
        join = shard_join(worker_join(process.name, "host", number), address)
        runner = ShardShell(
            ShardState(config_of(join)),
            run.network.server(address, process),
            run.network.client(ADDRESS, process),
            process,
            say,
            wait_for_nothing,
        )
        runner.begin()
        return cls(runner)

    def step(self) -> bool:
        is_busy = self.runner.step()
        if self.runner.service is not None:
            self.runner.service.validate()
        return is_busy

    def deadline(self) -> float | None:
        return self.runner.deadline()


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
        context = TeamContext(
            clock=process,
            say=say,
            patience=run.patience,
            root=run.root if shares else None,
            roots=(run.root,),
            meeting=None if hall is None or processes == 1 else hall.enter(0, process),
            kind=run.parts.member,
        )
        runner = WorkerShell(
            WorkerState(config_of(join)),
            ServerConnections(run.network.client(ADDRESS, process), dialler(run, process)),
            context,
            partial(gather, load=run.parts.load(number), cache=run.cache),
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
        context = TeamContext(
            clock=process,
            say=say,
            patience=run.patience,
            root=None,
            roots=(run.root,),
            meeting=meeting,
            kind=run.parts.member,
        )
        return cls(TeamProcess(context, meeting, run.parts.load(number), run.cache), process, hall)

    def step(self) -> bool:
        return self.runner.step()

    def leader(self) -> Process | None:
        """Return the process that leads its team, None if that is gone."""
        return self.hall.present.get(0)

    def deadline(self) -> float | None:
        """Return a moment that is past: it waits by itself."""
        return self.process.ahead_s

    def exit(self) -> Exit | None:
        return self.runner.ended

    def interrupt(self) -> None:
        self.runner.ended = Exit(code=INTERRUPTED, reason="")

    def close(self) -> None:
        self.runner.close()
