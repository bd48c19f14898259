"""Trains a job: in this process alone, or with a server and workers, which are started, watched, and ended with it."""

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec.structs import replace

from lockstep.common.data.source import load
from lockstep.common.errors import JobError, LockstepError, RunError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.messages import CallbackDecision, EpochRecord, Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.blas import blas_kernel
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import Numerics, kept_numerics
from lockstep.common.transport.shared_memory.folder import shared_root, sweep
from lockstep.launch.channel import NoticeReport
from lockstep.launch.chaos import Chaos, Interference, RunProcesses
from lockstep.launch.child import (
    GRACE_S,
    HERE,
    INTERRUPTED,
    LOG,
    USAGE,
    Child,
    WatchedProcess,
    end_all,
    exit_message,
)
from lockstep.launch.client import StatusClient
from lockstep.launch.lifetime import uninterrupted
from lockstep.launch.process_backend import (
    JOB_FILE,
    LocalBackend,
    ProcessBackend,
    ProcessCommand,
    Role,
    private_folder,
    remove_private,
)
from lockstep.launch.run_end import keep_logs
from lockstep.launch.worker_supervisor import Restarts, SupervisedWorker, WorkerSupervisor, has_crashed
from lockstep.ps.checkpoint.folder import CheckpointFolder
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.convictions import read_convictions
from lockstep.ps.records.recorder import NO_TRANSPORT, Setting
from lockstep.ps.records.run_folder import CHECKPOINTS, RESULT, RunResult, read_result
from lockstep.ps.standby.storage import MIRROR
from lockstep.results.reports.display import Display
from lockstep.results.reports.summary import final_status
from lockstep.runs.job_file import to_toml
from lockstep.runs.run_dir import has_begun
from lockstep.runs.session import Destination, open_run_in, open_session
from lockstep.runs.single_process import SerialRun

#: Seconds between two polls of the run, and if faults are injected or callbacks are awaited.
POLL_S, CHAOS_POLL_S = 0.2, 0.02

#: Seconds between two looks whether a worker has died: its team waits for it at the next step.
LOOK_S = 0.1

#: Seconds after its time in which a standby takes over if its workers can ask for that.
LATE_S = 5.0

#: In the folder of a run: that of its standby, and what a server left whose standby has led the run to its end.
STANDBY, BEFORE_TAKEOVER = "standby", "before-takeover"

#: The phases of a run that has not begun.
BEFORE = (RunPhase.AWAITING_SERVERS.value, RunPhase.AWAITING_WORKERS.value)


@dataclass
class Cluster:
    """One run's processes."""

    job: Job
    destination: Destination
    say: Callable[[str], None]
    watch: Callable[[Status], None]
    #: Starts the processes, here or elsewhere.
    backend: ProcessBackend
    #: What is done to the processes on purpose.
    chaos: Interference | None = None
    #: Asked between two epochs, which wait for it: whether the run ends with the one that is over. None: nobody asks.
    is_to_stop: Callable[[Sequence[EpochRecord]], bool] | None = None
    folder: Path = field(init=False)
    server: Child = field(init=False)
    #: The other servers.
    shards: list[Child] = field(default_factory=list)
    #: What mirrors the run and leads it if the server dies, None if there is nothing (left) that does.
    standby: Child | None = None
    #: The folder that the run is to be in: until the end, that of a standby that leads it is another.
    home: Path = field(init=False)
    supervisor: WorkerSupervisor = field(init=False)
    #: Of the servers.
    _restarts: Restarts = field(init=False)
    #: Where the workers find the server, empty until they are started; and the standby, empty if there is none.
    _address: str = ""
    _standby_address: str = ""
    #: When the server was last started, and whether it was a restart.
    _started_s: float = 0.0
    _is_second: bool = False
    #: Whether the run was seen to have begun.
    _has_begun: bool = False
    #: Workers that were evicted for good before we began.
    _convicted: int = 0
    clock: Clock = field(default_factory=SystemClock)
    #: All that has to end with us.
    _children: list[WatchedProcess] = field(default_factory=list)

    @property
    def launch(self) -> RunOptions:
        """How many processes there are, and how they talk."""
        return self.destination.options

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.destination.folder

    def run(self) -> RunResult:
        """Train to the end. `UsageError` or `RunError` with the root cause; nothing is left running in any case."""
        check_launch(self.launch)
        private = private_folder()
        self.folder, self.home = private.path, self.run_dir
        self._convicted = len(read_convictions(self.run_dir))
        self._restarts = Restarts(self.launch.max_restarts, seed="server")
        self.supervisor = WorkerSupervisor(
            self._start_worker, self.clock, self.launch.max_restarts, self.backend.team_size
        )
        try:
            address = self._start_servers("") or self._revive("")
            while address:
                if address != self._address:
                    self._start_workers(address)
                    self._start_standby()
                self._follow()
                address = self._revive(address)
            result = self._result()
            self.watch(final_status(result))
            return result
        finally:
            with uninterrupted():
                if self.chaos is not None:
                    self.chaos.end()
                end_all(self._children)
                # Of a server that was killed; an orderly one leaves nothing.
                sweep(shared_root())
                if self.run_dir != self.home:
                    bring_home(self.run_dir, self.home)
                elif self.launch.standby and (self.home / RESULT).exists():
                    shutil.rmtree(self.home / STANDBY, ignore_errors=True)
                if lost := keep_logs(self.folder, self.home):
                    self.say(lost)
                remove_private(private)

    def _start_servers(self, address: str) -> str:
        """Start all servers, at an address or wherever there is room; return it, empty if the first ended at once."""
        self._started_s = self.clock.now()
        self.server = self._start_server(Role.SERVER, *self._server_arguments(), address=address)
        address = self.server.listens()
        if address:
            self.shards += [self._start_server(Role.SHARD, address, number=n) for n in range(1, self.launch.servers)]
        else:
            self.server.end(GRACE_S)
        return address

    def _server_arguments(self) -> list[str]:
        (self.folder / JOB_FILE).write_text(to_toml(self.job, self.launch), encoding="utf-8")
        # One that was killed before it had begun the run begins it.
        is_resumed = self.destination.is_resumed or has_begun(self.run_dir)
        # The others join a resumed run when they are back: not all may be.
        needed = 1 if self._is_second else self.launch.min_workers or self.launch.workers
        return [
            *("--job", f"{HERE}/{JOB_FILE}"),
            *("--resume" if is_resumed else "--run-dir", str(self.run_dir)),
            *("--min-workers", str(needed)),
            *(["--pause"] if self.is_to_stop is not None else []),
        ]

    def _start_worker(self, number: int) -> WatchedProcess:
        command = command_of(Role.WORKER, self._addresses(), number=number)
        worker = self.backend.start_worker(command, self.folder)
        self._children.append(worker)
        return worker

    def _start_workers(self, address: str) -> None:
        """Start all workers, again if servers were started elsewhere: those before do not know the new address."""
        self._address = address
        self.supervisor.end_all()
        self.supervisor.start_all(self.backend.workers)

    def _start_standby(self) -> None:
        """Start what mirrors the run into a folder within the run's own."""
        if not self.launch.standby:
            return
        words = ["--standby-of", self._address, "--run-dir", str(self.home / STANDBY), "--supervised", HERE]
        command = ProcessCommand(role=Role.STANDBY, arguments=[Role.SERVER.value, *words])
        self.standby = self.backend.start_server(command, self.folder)
        self._children.append(self.standby)
        self._standby_address = self.standby.listens()

    def _addresses(self) -> str:
        """Return where the run may be led from: one that is started again has nobody else to ask."""
        return ",".join(filter(None, (self._address, self._standby_address)))

    def _start_server(self, role: Role, *words: str, number: int = 0, address: str = "") -> Child:
        command = command_of(role, *words, number=number, address=address)
        server = self.backend.start_server(command, self.folder)
        self._children.append(server)
        return server

    def _follow(self) -> None:
        client = StatusClient(self.backend.dial(self._address))
        try:
            while self._is_served():
                # Before the question, so that the answer shows what came of it.
                dead = self.supervisor.dead()
                self._check_shards()
                status = client.ask(POLL_S)
                self._relay()
                if status is not None:
                    self._has_begun = self._has_begun or status.phase not in BEFORE
                self._report_deaths(dead, status)
                self.supervisor.restart_due()
                self._promote_if_leaderless(status, client)
                if status is not None and not status.is_standby:
                    self.watch(status)
                    self._run_callbacks(status, client)
                if self.chaos is not None:
                    workers = self.supervisor.processes
                    groups: RunProcesses = {
                        Role.SERVER: [self.server],
                        Role.SHARD: self.shards,
                        Role.WORKER: workers,
                    }
                    self.chaos.on_status(status, groups)
        finally:
            client.close()
            self._relay()

    def _is_served(self) -> bool:
        """Wait until the next poll is due, or something is to be done for a worker; return whether the server runs."""
        poll_s = POLL_S if self.chaos is None and self.is_to_stop is None else CHAOS_POLL_S
        until = self.clock.now() + poll_s
        while not self.server.wait(min(poll_s, LOOK_S)):
            if self.clock.now() >= until or self.supervisor.is_due():
                return True
        return False

    def _promote_if_leaderless(self, status: Status | None, client: StatusClient) -> None:
        """Let the standby lead the run if nobody else asks for that."""
        waited_s = self.clock.now() - self._started_s
        if status is not None and is_leaderless(status, waited_s, self.launch.takeover_seconds):
            self.say("no worker of the last step is left to ask the standby for it: it leads the run from now on")
            client.promote()
            self._started_s = self.clock.now()

    def _run_callbacks(self, status: Status, client: StatusClient) -> None:
        """Let callbacks decide whether a run that waits for them continues; repeat that if it was lost."""
        if self.is_to_stop is not None and status.phase == RunPhase.PAUSED.value:
            stops = self.is_to_stop(status.history)
            client.decide(CallbackDecision(epoch=status.history[-1].epoch, stops=stops))

    def _check_shards(self) -> None:
        """Start a shard again that died, if the run can resume from what it has kept: its server waits for it then.

        Otherwise, raise if the server does not report it: the run cannot begin without it.
        """
        dead = next((shard for shard in self.shards if shard.has_ended() and shard.code != 0), None)
        if dead is None:
            return
        self._check_crash(dead)
        if ended_from_outside(dead) and has_checkpoint(self.run_dir) and not self.server.has_ended():
            self._restart_shard(dead)
            return
        # A server that misses one ends at once, and one that fails ends its shards: it reports why.
        if not self.server.wait(GRACE_S):
            if not ended_from_outside(dead):
                raise exit_error(dead, f"the run cannot continue without a server: {exit_message(dead)}")
            self.server.end(0.0)

    def _restart_shard(self, dead: Child) -> None:
        delay_s = self._restarts.delay_s(dead.lived_s(self._started_s, self.clock.now()), dead.code)
        if delay_s is None:
            raise RunError(f"{exit_message(dead)}, and its slice of the weights is gone with it")
        self.say(f"{exit_message(dead)}; restarting in {delay_s:.1f} s, from the last checkpoint")
        threading.Event().wait(delay_s)
        number = 1 + self.shards.index(dead)
        dead.end(0.0)
        self.shards[number - 1] = self._start_server(Role.SHARD, self._addresses(), number=number)

    def _check_crash(self, process: WatchedProcess) -> None:
        """Raise if a server has crashed before the run began: it would do so again."""
        if has_crashed(process) and not has_begun(self.run_dir):
            raise RunError(crash_message(process, self.job.numerics))

    def _revive(self, address: str) -> str:
        """Start servers again that died, if the run can resume from what it has kept; return as `_start_servers`."""
        while (dead := self._dead_server()) is not None:
            if dead is self.server and self._has_heir():
                return self._follow_standby(dead)
            delay_s = self._restarts.delay_s(dead.lived_s(self._started_s, self.clock.now()), dead.code)
            if delay_s is None:
                return ""
            self.say(f"{exit_message(dead)}; restarting in {delay_s:.1f} s, from the last checkpoint")
            for shard in self.shards:
                shard.end(0.0)
            self.shards.clear()
            threading.Event().wait(delay_s)
            self._is_second = bool(address)  # otherwise there were no workers yet
            if started := self._start_servers(address):
                return started
        return ""

    def _has_heir(self) -> bool:
        """Tell whether there is a standby that can lead the run, or does."""
        if self.standby is None or self.standby.has_ended():
            return False
        return is_heir(self.home / STANDBY, self.server)

    def _follow_standby(self, dead: WatchedProcess) -> str:
        """Take the standby for the server: the workers find it, and let it lead the run. Return its address."""
        assert self.standby is not None
        after = "" if leads(self.home / STANDBY) else f" after {self.launch.takeover_seconds:g} s without it"
        self.say(f"{exit_message(dead)}; its workers go to the standby{after}")
        self.server, self.standby = self.standby, None
        self.destination = replace(self.destination, folder=self.home / STANDBY, is_resumed=True)
        self._address, self._standby_address = self._standby_address, ""
        self._started_s, self._is_second = self.clock.now(), True
        return self._address

    def _dead_server(self) -> Child | None:
        """Return the server or shard that died, None if the run itself ended, well or not: it would do so again."""
        if (self.run_dir / RESULT).exists():
            return None
        self._check_crash(self.server)
        # One that ends by itself while its standby leads has handed the run over, or found that out.
        if was_killed(self.server) or (self._has_heir() and has_left(self.home / STANDBY, self.server)):
            return self.server
        return self._killed_shard()

    def _killed_shard(self) -> Child | None:
        """Return a shard that was killed, if the server has ended as one does that misses a shard."""
        killed = (shard for shard in self.shards if shard.has_ended() and ended_from_outside(shard))
        return next(killed, None) if self.server.code == 1 else None

    def _relay(self) -> None:
        """Show the notices of the server, as where it resumes from, and of teams, as what they lack."""
        leaders = self.supervisor.processes[:: self.backend.team_size]
        for process in (self.server, *leaders):
            for report in process.reports():
                if isinstance(report, NoticeReport):
                    self.say(report.text)
        for process in self._children:
            process.take()

    def _report_deaths(self, dead: list[SupervisedWorker], status: Status | None) -> None:
        """Report which workers have died; raise if the run cannot begin, or continue, without them."""
        # A run that has failed ends its workers first: then the server's end, a moment later, is what says why.
        if not dead or (any(worker.process.code > 0 for worker in dead) and self.server.wait(GRACE_S)):
            return
        crashed = next((worker.process for worker in dead if has_crashed(worker.process)), None)
        # Asked after the death, the server knows whether the run had begun; if it does not answer, nobody does.
        if crashed is not None and status is not None and not self._has_begun:
            raise RunError(crash_message(crashed, self.job.numerics))
        lost = next((worker.process for worker in dead if worker.is_given_up), None)
        if lost is not None and self.supervisor.are_given_up() and not self.backend.has_external_workers:
            raise exit_error(lost, f"no worker is left: {exit_message(lost)}")
        # If one was evicted, the run continues without it.
        is_under_way = self._is_second or self._has_gone_back() or status is None or status.phase not in BEFORE
        if lost is not None and not is_under_way:
            lost = self._who_said_why(lost)
            raise exit_error(lost, f"the run cannot begin with all its workers: {exit_message(lost)}")
        for worker in dead:
            outlook = "it is not restarted" if worker.is_given_up else "it is restarted"
            self.say(f"{exit_message(worker.process)}; its micro-batches go to the others, and {outlook}")

    def _who_said_why(self, lost: WatchedProcess) -> WatchedProcess:
        """Return the worker whose log has the reason: the processes of a team end together, in any order."""
        for process in self.supervisor.processes:
            if not lost.last_message() and process.wait(GRACE_S) and process.code > 0:
                lost = process
        return lost

    def _has_gone_back(self) -> bool:
        """Return whether a worker was evicted for good since we began, and the server resumes the run without it."""
        return len(read_convictions(self.run_dir)) > self._convicted

    def _result(self) -> RunResult:
        # One that was killed after the run's end has left all that is to be left.
        if self.server.code != 0 and not (self.run_dir / RESULT).exists():
            raise self._server_failure()
        return read_result(self.run_dir)

    def _server_failure(self) -> LockstepError:
        if (killed := self._killed_shard()) is not None:
            return RunError(f"{exit_message(killed)}, and its slice of the weights is gone with it")
        failure = self.server.failure if self.server.has_failed() else None
        if failure is None or self.server.code == USAGE:
            return exit_error(self.server, exit_message(self.server) if failure is None else failure.text)
        return failure.error()


def has_checkpoint(run: Path) -> bool:
    """Tell whether the run in a folder can be resumed from a checkpoint."""
    return bool(CheckpointFolder(run / CHECKPOINTS, lambda text: None).steps())


def ended_from_outside(process: WatchedProcess) -> bool:
    """Tell whether a process was ended by a signal; one of ours would have come after an interrupt of this process."""
    return process.code < 0 or process.code == INTERRUPTED


def was_killed(server: WatchedProcess) -> bool:
    """Tell whether a server was ended by the system or by somebody, and reports no reason of its own."""
    return ended_from_outside(server) or (server.code == 1 and not server.has_failed())


def is_leaderless(status: Status, waited_s: float, takeover_s: float) -> bool:
    """Tell whether a standby that is to lead the run does not, although its workers have had the time to ask for it.

    Those of the last step may have died as well, and others do not know that the server is gone.
    """
    return status.is_standby and waited_s >= takeover_s + LATE_S


def leads(standby: Path) -> bool:
    """Tell whether the run in the folder of a standby is led from there: until then, that is a mirror."""
    return has_begun(standby) and not (standby / MIRROR).exists()


def is_heir(standby: Path, server: WatchedProcess) -> bool:
    """Tell whether a standby, by its folder, leads the run whose server has ended, or can lead it."""
    # One that was interrupted has told its standby that the run is over.
    return leads(standby) or (server.code != INTERRUPTED and has_checkpoint(standby))


def has_left(standby: Path, server: WatchedProcess) -> bool:
    """Tell whether a server without a result has ended since its standby leads the run, or is about to."""
    return leads(standby) or server.code == 0


def bring_home(folder: Path, home: Path) -> None:
    """Move what a standby has of a run, which it led to its end, to where the run began; keep what was there."""
    before = home / BEFORE_TAKEOVER
    before.mkdir(exist_ok=True)
    for path in sorted(home.iterdir()):
        if path not in (before, folder) and path.suffix != LOG:
            path.replace(before / path.name)
    for path in sorted(folder.iterdir()):
        path.replace(home / path.name)
    folder.rmdir()


def command_of(role: Role, *words: str, number: int = 0, address: str = "") -> ProcessCommand:
    """Return the command of a process that ends with this one."""
    arguments = [role.value, *words, "--supervised", HERE]
    return ProcessCommand(role=role, arguments=arguments, number=number, address=address)


def check_launch(launch: RunOptions) -> None:
    """Raise `JobError` for values that contradict one another."""
    if launch.servers > 1 and not launch.workers:
        raise JobError(
            f"servers = {launch.servers!r} with workers = 0, which trains in one process alone: expected servers = 1"
        )
    if launch.workers and launch.min_workers is not None and launch.min_workers > launch.workers:
        raise JobError(
            f"min_workers = {launch.min_workers!r} is more than workers = {launch.workers!r}, so the run would never "
            "begin: expected at most as many"
        )


def exit_error(child: WatchedProcess, text: str) -> LockstepError:
    """Return the error for a process that has ended: wrong usage if it said so by its exit code."""
    return UsageError(text) if child.code == USAGE else RunError(text)


def crash_message(child: WatchedProcess, numerics: Numerics) -> str:
    """Return how a process crashed before it was ready: most likely in the code that is chosen for this processor."""
    if numerics == "portable":
        return f"{exit_message(child)} before it was ready; to compute without our kernels, use numerics = 'native'"
    return (
        f"{exit_message(child)} before it was ready; the BLAS kernel is {blas_kernel()!r}; set OPENBLAS_CORETYPE "
        "to choose another"
    )


#: Called with the epochs so far, between two of them; returns whether the run ends with the last.
IsToStop = Callable[[Sequence[EpochRecord]], bool]


def train_here(
    job: Job,
    destination: Destination,
    display: Display,
    chaos: Chaos | None = None,
    is_to_stop: IsToStop | None = None,
) -> RunResult:
    """Train to the end on this machine, showing the progress; the result is in the folder too."""
    launch = destination.options
    check_launch(launch)
    if launch.workers == 0:
        return train_alone(job, destination, display, is_to_stop)
    return train_on(LocalBackend(launch), job, destination, display, chaos, is_to_stop)


def train_on(
    backend: ProcessBackend,
    job: Job,
    destination: Destination,
    display: Display,
    chaos: Chaos | None = None,
    is_to_stop: IsToStop | None = None,
) -> RunResult:
    """Train to the end with the processes of that backend."""
    say, watch = display.say, display.show
    return Cluster(job, destination, say=say, watch=watch, backend=backend, chaos=chaos, is_to_stop=is_to_stop).run()


@computing()
@kept_numerics()
def train_alone(job: Job, destination: Destination, display: Display, is_to_stop: IsToStop | None = None) -> RunResult:
    """Train in this process, without any transport."""
    clock = SystemClock()
    started = clock.now()
    take_numerics(job.numerics)
    # There is no second process, which could audit or lack the data.
    options = msgspec.structs.replace(destination.options, pause=is_to_stop is not None, audit=0.0, ship_data=False)
    setup = open_run_in(replace(destination, options=options), job, load(job.data))
    setting = Setting(transport=NO_TRANSPORT, started=started)
    session = open_session(setup, setting, destination, clock, display.say)
    if destination.options.audit:
        display.say("nothing is audited: this process computes alone")
    run = SerialRun(
        setup, session.recorder, clock, display.show, session.start, session.checkpointer, is_to_stop, display.say
    )
    return run.train()
