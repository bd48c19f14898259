"""A server and workers on this machine: starts them, watches them, shows the progress, leaves nothing behind."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common.clock import SystemClock
from common.environment import cores, keep_to_core
from common.errors import JobError, LockstepError, RunError, UsageError
from common.job import Job
from common.messages import EpochStatus, Status
from common.transport.shared_folder import shared_root, sweep
from common.transport.zeromq import dial
from lockstep.books import Destination
from lockstep.chaos import Chaos
from lockstep.child import Child
from lockstep.job_file import to_toml
from lockstep.launch import Launch
from lockstep.run_dir import has_begun
from lockstep.signals import uninterrupted
from lockstep.status_client import StatusClient
from ps.phases import Phase
from ps.run_folder import RunResult, read_result

#: Seconds between two looks at the run, and where something is done to it.
LOOK_S, CHAOS_LOOK_S = 0.2, 0.02

#: Seconds that processes have for an orderly end: together with the kill after it, well below five.
GRACE_S = 2.0

#: How those lines of the server begin that a person is to see at once.
NOTICES = ("warning: ", "goes on after ", "begins anew: ")

#: Longest folder name below which a socket's path stays within the system's 107 bytes.
FOLDER_LIMIT = 80


@dataclass
class Cluster:
    """One run's processes on this machine; to be used as a context."""

    job: Job
    destination: Destination
    say: Callable[[str], None]
    watch: Callable[[Status], None]
    #: What is done to the processes on purpose.
    chaos: Chaos | None = None
    folder: Path = field(init=False)
    server: Child = field(init=False)
    workers: list[Child] = field(default_factory=list)
    #: The servers beside the first.
    shards: list[Child] = field(default_factory=list)
    #: Workers whose death has been told.
    mourned: list[Child] = field(default_factory=list)
    #: All that has to end with us.
    _children: list[Child] = field(default_factory=list)

    @property
    def launch(self) -> Launch:
        """How many processes there are, and how they talk."""
        return self.destination.launch

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.destination.folder

    def run(self) -> RunResult:
        """Train to the end. `UsageError` or `RunError` with the root cause; nothing is left running in any case."""
        check_launch(self.launch)
        self.folder = private_folder()
        try:
            self.server = self._start_server()
            address = self._announced()
            self._start_shards(address)
            self._start_workers(address)
            self._follow(address)
            result = self._result()
            self.watch(final_status(result))
            return result
        finally:
            with uninterrupted():
                end_all(self._children)
                # Of a server that was killed; an orderly one leaves nothing.
                sweep(shared_root())
                self._keep_logs()

    def _start_server(self) -> Child:
        job_file = self.folder / "job.toml"
        job_file.write_text(to_toml(self.job, self.launch), encoding="utf-8")
        bind = "tcp://127.0.0.1:0" if self.launch.transport == "tcp" else f"ipc://{self.folder}/server.sock"
        arguments = ["server", "--supervised", str(self.folder), "--job", str(job_file), "--bind", bind]
        needed = self.launch.min_workers or self.launch.workers
        arguments += ["--resume" if self.destination.is_resumed else "--run-dir", str(self.run_dir)]
        arguments += ["--min-workers", str(needed)]
        return self._start("the server", arguments, "server.log")

    def _start_shards(self, address: str) -> None:
        for number in range(1, self.launch.servers):
            bind = f"ipc://{self.folder}/shard-{number}.sock" if address.startswith("ipc:") else "tcp://127.0.0.1:0"
            arguments = ["shard", address, "--supervised", str(self.folder), "--bind", bind]
            self.shards.append(self._start("a shard", arguments, f"shard-{number}.log"))

    def _start_workers(self, address: str) -> None:
        has_a_core_each = self.launch.workers == cores()
        for number in range(self.launch.workers):
            worker = self._start(
                "a worker", ["worker", address, "--supervised", str(self.folder)], f"worker-{number}.log"
            )
            if has_a_core_each:
                # Otherwise one that is woken may share a core with another for milliseconds while a third is idle.
                keep_to_core(worker.process.pid, number)
            self.workers.append(worker)

    def _start(self, name: str, arguments: list[str], log: str) -> Child:
        child = Child.start(name, arguments, self.folder / log)
        self._children.append(child)
        return child

    def _announced(self) -> str:
        """Return the address that the server says it listens on, as its first line."""
        line = self.server.output.readline().decode().strip()
        if not line:
            self.server.make_end(GRACE_S)
            raise self._server_failure()
        return line

    def _follow(self, address: str) -> None:
        client = StatusClient(dial(address))
        try:
            while not self.server.wait(LOOK_S if self.chaos is None else CHAOS_LOOK_S):
                # Before the question, so that the answer tells what came of it.
                dead = [worker for worker in self.workers if worker.has_ended() and worker.process.returncode != 0]
                self._miss_shards()
                status = client.ask(LOOK_S)
                self._relay()
                if status is not None:
                    self.watch(status)
                    self._bury(dead, status)
                if self.chaos is not None:
                    self.chaos.look(status, self)
        finally:
            if self.chaos is not None:
                self.chaos.end()
            client.port.close()
            self._relay()

    def _miss_shards(self) -> None:
        """Raise where a shard is gone: the run cannot begin, or not go on, without it."""
        dead = next((shard for shard in self.shards if shard.has_ended() and shard.process.returncode != 0), None)
        # A server that misses one ends at once, and one that fails ends its shards: it tells why.
        if dead is not None and not self.server.wait(GRACE_S):
            error = UsageError if dead.process.returncode == 2 else RunError
            raise error(f"the run cannot go on with a server less: {obituary(dead)}")

    def _relay(self) -> None:
        """Tell what the server tells of the run's files: where it goes on from, and what cannot be written."""
        for line in self.server.news():
            if line.startswith(NOTICES):
                self.say(line)

    def _bury(self, dead: list[Child], status: Status) -> None:
        """Tell who has died; raise where the run cannot begin, or not go on, without them."""
        if not dead:
            return
        new = [worker for worker in dead if worker not in self.mourned]
        # A run that has failed ends its workers first: then the server's end, a moment later, is what tells why.
        if any(worker.process.returncode > 0 for worker in new) and self.server.wait(GRACE_S):
            return
        error = UsageError if dead[0].process.returncode == 2 else RunError
        if len(dead) == len(self.workers):
            raise error(f"no worker is left: {obituary(dead[0])}")
        if status.phase in (Phase.MUSTERING.value, Phase.GATHERING.value):
            raise error(f"the run cannot begin with all its workers: {obituary(dead[0])}")
        for worker in new:
            self.mourned.append(worker)
            self.say(f"{obituary(worker)}; its pieces go to the others")

    def _result(self) -> RunResult:
        if self.server.process.returncode != 0:
            raise self._server_failure()
        return read_result(self.run_dir)

    def _server_failure(self) -> LockstepError:
        server = self.server
        killed = next((shard for shard in self.shards if shard.has_ended() and shard.process.returncode < 0), None)
        if killed is not None and server.process.returncode == 1:
            return RunError(f"{obituary(killed)}, and its slice of the weights is gone with it")
        error = UsageError if server.process.returncode == 2 else RunError
        return error(server.last_error() or obituary(server))

    def _keep_logs(self) -> None:
        """Move the logs into the folder of a run that has begun, and remove our own."""
        if has_begun(self.run_dir):
            for log in self.folder.glob("*.log"):
                shutil.move(log, self.run_dir / log.name)
        shutil.rmtree(self.folder, ignore_errors=True)


def final_status(result: RunResult) -> Status:
    """Return how a finished run stands: the last look at it came before its end."""
    history = [
        EpochStatus(
            epoch=epoch.epoch,
            loss=epoch.loss,
            accuracy=epoch.accuracy,
            test_loss=epoch.test_loss,
            test_accuracy=epoch.test_accuracy,
            wall_s=epoch.wall_s,
        )
        for epoch in result.history
    ]
    return Status(
        run=result.run,
        model=result.model,
        phase=Phase.FINISHED.value,
        epoch=result.epochs,
        epochs=result.epochs,
        step=result.steps,
        steps=result.steps,
        loss=result.train_loss,
        accuracy=history[-1].accuracy,
        images_per_s=result.images_per_s,
        elapsed_s=history[-1].wall_s,
        eta_s=0.0,
        min_workers=result.workers,
        workers=[],
        history=history,
        failure="",
    )


def check_launch(launch: Launch) -> None:
    """Raise `JobError` for what does not go together."""
    if launch.servers > 1 and not launch.workers:
        raise JobError(
            f"servers = {launch.servers!r} with workers = 0, which trains in one process alone: expected servers = 1"
        )


def private_folder() -> Path:
    """Return a new folder, open to this user only, for the socket and the logs of a run."""
    folder = Path(tempfile.mkdtemp(prefix="lockstep-"))
    if len(str(folder).encode()) <= FOLDER_LIMIT:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="lockstep-", dir="/tmp"))


def obituary(child: Child) -> str:
    """Return how a child that is gone ended, with its last words where it said any."""
    words = child.last_words() if child.process.returncode > 0 else ""
    return f"{child.name} (pid {child.process.pid}) {child.how_it_ended()}{words and ': '}{words}"


def end_all(children: list[Child]) -> None:
    """End processes: all are asked at once, share the time of grace, and are killed after it."""
    clock = SystemClock()
    for child in children:
        child.ask_to_end()
    deadline = clock.now() + GRACE_S
    for child in children:
        child.make_end(max(0.0, deadline - clock.now()))
