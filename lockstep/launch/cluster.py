"""Trains a job: in this process alone, or with a server and workers, which are started, watched, and ended with it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
from lockstep.common.runtime.environment import demand_open_files
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import Numerics, kept_numerics
from lockstep.common.transport.shared_memory.folder import shared_root, sweep
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.chaos import Chaos, Interference
from lockstep.launch.client import StatusClient
from lockstep.launch.endpoints import credential_of, server_key_in
from lockstep.launch.lifetime import uninterrupted
from lockstep.launch.process_backend import LocalBackend, ProcessBackend, run_folder
from lockstep.launch.run_end import keep_logs
from lockstep.launch.run_starter import RunStarter
from lockstep.launch.supervision.channel import NoticeReport
from lockstep.launch.supervision.child import GRACE_S, Crew, WatchedProcess, exit_message
from lockstep.launch.supervision.restarts import SERVER, USAGE, ProcessPlace, Role
from lockstep.launch.supervision.supervisor import Outlook, RunEnd, RunSupervisor
from lockstep.launch.supervision.template import ProcessTemplate
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.recorder import NO_TRANSPORT, Setting
from lockstep.ps.records.run_folder import RESULT, RunResult, read_result
from lockstep.results.display import Display
from lockstep.results.summary import final_status
from lockstep.runs.session import Destination, open_run_in, open_session
from lockstep.runs.single_process import SerialRun

#: Seconds between two polls of the run, and if faults are injected or callbacks are awaited.
POLL_S, CHAOS_POLL_S = 0.2, 0.02

#: Seconds between two looks whether a worker has died: its team waits for it at the next step.
LOOK_S = 0.1

#: Called with the epochs so far, between two of them; returns whether the run ends with the last.
IsToStop = Callable[[Sequence[EpochRecord]], bool]


@dataclass
class Cluster:
    """Does what a run's supervisor decides, and shows the run meanwhile."""

    starter: RunStarter
    say: Callable[[str], None]
    watch: Callable[[Status], None]
    clock: Clock
    #: Disturbs the processes on purpose.
    chaos: Interference | None = None
    #: Asked between two epochs, which wait for it: whether the run ends with the last. None if nothing asks.
    is_to_stop: IsToStop | None = None
    #: The connection to the server that runs.
    client: StatusClient | None = None
    crew: Crew = field(init=False)
    supervisor: RunSupervisor = field(init=False)

    def __post_init__(self) -> None:
        backend, options = self.starter.backend, self.starter.destination.options
        self.crew = Crew(self.starter.start)
        self.supervisor = RunSupervisor(options, self, backend.workers, backend.team_size, backend.has_external_workers)

    def run(self) -> RunResult:
        """Train to the end. `UsageError` or `RunError` with the root cause; nothing is left running in any case."""
        try:
            self.supervisor.begin(self.clock.now())
            while self.supervisor.end is None:
                self._turn()
            result = self._result(self.supervisor.end)
            self.watch(final_status(result))
            return result
        finally:
            with uninterrupted():
                self._close()

    def _turn(self) -> None:
        """Wait, and let the supervisor see which processes have ended, the status and the time."""
        if not self.supervisor.is_served and self.crew.runs(SERVER):
            self._await_server()
        self._wait()
        ends = self.crew.ends()
        # After the death of a worker, so that the answer shows what came of it.
        status = self._ask()
        self._relay()
        self.supervisor.on_ends(ends, self.clock.now())
        self.supervisor.on_time(self.clock.now())
        if self.supervisor.end is None and self.crew.runs(SERVER):
            self._show(status)

    def _await_server(self) -> None:
        """Wait until the server that was started listens, or ends before that."""
        server = self.crew.processes[SERVER]
        address = server.listens()
        if not address:
            server.end(GRACE_S)
            return
        is_elsewhere, self.starter.address = address != self.starter.address, address
        self._dial()
        self.supervisor.on_listening(self.clock.now(), is_elsewhere=is_elsewhere)

    def _ask(self) -> Status | None:
        """Ask the server for the status, if it runs; None if it does not answer in time."""
        if self.client is None or not self.crew.runs(SERVER):
            return None
        status = self.client.ask(POLL_S)
        self.supervisor.on_status(status)
        return status

    def _wait(self) -> None:
        """Wait until the next poll is due, or something is to be done for a process."""
        poll_s = POLL_S if self.chaos is None and self.is_to_stop is None else CHAOS_POLL_S
        until, server = self.clock.now() + poll_s, self.crew.processes[SERVER]
        while (now := self.clock.now()) < until and not self.crew.has_news():
            due = self.supervisor.deadline()
            if due is not None and now >= due:
                return
            if server.wait(min(poll_s, LOOK_S)):
                threading.Event().wait(CHAOS_POLL_S)

    # The supervisor acts through these

    def start(self, place: ProcessPlace) -> None:
        self.crew.begin(place)

    def stop(self, place: ProcessPlace) -> None:
        self.crew.stop(place)

    def report(self, place: ProcessPlace, outlook: Outlook, delay_s: float) -> None:
        self.say(self._death_text(place, outlook, delay_s))

    def has_result(self) -> bool:
        return (self.starter.run_dir / RESULT).exists()

    def _dial(self) -> None:
        self._hang_up()
        credential = credential_of(server_key_in(self.starter.backend.keys), self.starter.folder)
        self.client = StatusClient(dial(self.starter.address, credential=credential), self.clock)

    def _hang_up(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def _relay(self) -> None:
        """Show the notices of the server, as where it resumes from, and of teams, as what they lack."""
        leaders = self.crew.at(Role.WORKER)[:: self.starter.backend.team_size]
        for process in (self.crew.processes[SERVER], *leaders):
            for report in process.reports():
                if isinstance(report, NoticeReport):
                    self.say(report.text)

    def _show(self, status: Status | None) -> None:
        if status is not None:
            self.watch(status)
            self._run_callbacks(status)
        if self.chaos is not None:
            self.chaos.on_status(status, self.crew.at)

    def _run_callbacks(self, status: Status) -> None:
        """Let callbacks decide whether a run that waits for them continues; repeat that if it was lost."""
        if self.is_to_stop is not None and self.client is not None and status.phase == RunPhase.PAUSED.value:
            stops = self.is_to_stop(status.history)
            self.client.decide(CallbackDecision(epoch=status.history[-1].epoch, stops=stops))

    def _death_text(self, place: ProcessPlace, outlook: Outlook, delay_s: float) -> str:
        """Return how a process has died, and what follows."""
        text = exit_message(self.crew.processes[place])
        if outlook is Outlook.RESTARTED and place.role is not Role.WORKER:
            return f"{text}; restarting in {delay_s:.1f} s"
        after = "it is restarted" if outlook is Outlook.RESTARTED else "it is not restarted"
        return f"{text}; its micro-batches go to the others, and {after}"

    def _result(self, end: RunEnd) -> RunResult:
        self._relay()
        if end is not RunEnd.RESULT:
            raise self._error(end)
        return read_result(self.starter.run_dir)

    def _error(self, end: RunEnd) -> LockstepError:
        """Return why a run has failed."""
        dead = self.crew.processes[self.supervisor.cause]
        match end:
            case RunEnd.CRASH:
                return RunError(crash_message(dead, self.starter.job.numerics))
            case RunEnd.SHARD_KILLED:
                return RunError(f"{exit_message(dead)}, and its slice of the weights is gone with it")
            case RunEnd.SHARD_FAILED:
                return exit_error(dead, f"the run cannot continue without a server: {exit_message(dead)}")
            case RunEnd.NO_WORKER:
                return exit_error(dead, f"no worker is left: {exit_message(dead)}")
            case RunEnd.NOT_ALL_WORKERS:
                dead = self._with_reason(dead)
                return exit_error(dead, f"the run cannot begin with all its workers: {exit_message(dead)}")
            case _:
                return server_error(dead)

    def _with_reason(self, lost: WatchedProcess) -> WatchedProcess:
        """Return the worker that reports the reason: the processes of a team end together, in any order."""
        for process in self.crew.at(Role.WORKER):
            if not lost.last_message() and process.wait(GRACE_S) and process.code > 0:
                lost = process
        return lost

    def _close(self) -> None:
        """End all processes, and leave the run's folder as a person expects it."""
        self._hang_up()
        if self.chaos is not None:
            self.chaos.end()
        self.crew.end_all()
        # Of a server that was killed; an orderly one leaves nothing.
        sweep(shared_root())
        if lost := keep_logs(self.starter.folder, self.starter.run_dir):
            self.say(lost)


def check_launch(launch: RunOptions) -> None:
    """Raise `JobError` for values that contradict one another, `UsageError` if their processes need too many files."""
    if launch.servers > 1 and not launch.workers:
        raise JobError(
            f"servers = {launch.servers!r} with workers = 0, which trains in one process alone: expected servers = 1"
        )
    if launch.workers and launch.min_workers is not None and launch.min_workers > launch.workers:
        raise JobError(
            f"min_workers = {launch.min_workers!r} is more than workers = {launch.workers!r}, so the run would never "
            "begin: expected at most as many"
        )
    if launch.workers:
        demand_open_files(launch.workers + launch.servers)


def exit_error(child: WatchedProcess, text: str) -> LockstepError:
    """Return the error for a process that has ended: wrong usage if it said so by its exit code."""
    return UsageError(text) if child.code == USAGE else RunError(text)


def server_error(server: WatchedProcess) -> LockstepError:
    """Return why a server has failed: the error that it has reported, or else how it has ended."""
    failure = server.failure if server.has_failed() else None
    if failure is None or server.code == USAGE:
        return exit_error(server, exit_message(server) if failure is None else failure.text)
    return failure.error()


def crash_message(child: WatchedProcess, numerics: Numerics) -> str:
    """Return how a process crashed before it was ready: most likely in the code that is chosen for this processor."""
    if numerics == "portable":
        return f"{exit_message(child)} before it was ready; to compute without our kernels, use numerics = 'native'"
    return (
        f"{exit_message(child)} before it was ready; the BLAS kernel is {blas_kernel()!r}; set OPENBLAS_CORETYPE "
        "to choose another"
    )


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
    with ProcessTemplate.of("server", "worker", data=job.data) as template:
        return train_on(LocalBackend(launch, template), job, destination, display, chaos, is_to_stop)


def train_on(
    backend: ProcessBackend,
    job: Job,
    destination: Destination,
    display: Display,
    chaos: Chaos | None = None,
    is_to_stop: IsToStop | None = None,
) -> RunResult:
    """Train to the end with the processes of that backend."""
    check_launch(destination.options)
    with run_folder() as folder:
        starter = RunStarter(job, destination, backend, folder, pauses=is_to_stop is not None)
        return Cluster(starter, display.say, display.show, SystemClock(), chaos, is_to_stop).run()


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
