"""`lockstep worker`: a worker of one or several processes, which needs nothing but the server's address."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from lockstep.cli.options.run import KEY_OPTION, SUPERVISED_OPTION, TIMEOUT_OPTION, passes_link
from lockstep.cli.options.types import whole_number
from lockstep.common.data.source import load
from lockstep.common.errors import UsageError
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import PROCESSES_LIMIT
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import (
    core_numbers,
    cores,
    demand_open_files,
    give_way,
    network_id,
    own_cache,
)
from lockstep.common.statemachine.client import ClientConfig, Exit
from lockstep.common.transport.address import IpcAddress, parse
from lockstep.common.transport.auth.credentials import Credential
from lockstep.common.transport.shared_memory.folder import shared_root, sweep
from lockstep.common.transport.zeromq.ports import PortPoller, dial, server_at
from lockstep.launch.client import conclude, own_join, say, take_part
from lockstep.launch.endpoints import (
    check_worker_key,
    credential_of,
)
from lockstep.launch.lifetime import ends_with_parent
from lockstep.launch.process_backend import run_folder
from lockstep.launch.supervision.channel import EndReport, ParentLink
from lockstep.launch.supervision.child import HERE, Child, Crew
from lockstep.launch.supervision.restarts import INTERRUPTED, ProcessPlace
from lockstep.launch.supervision.template import ProcessTemplate
from lockstep.launch.team import (
    LEADER,
    MachineTeam,
    TeamSupervisor,
    TeamView,
    default_processes,
    own_core,
    team_arguments,
)
from lockstep.worker.connections import ServerConnections
from lockstep.worker.setup import gather
from lockstep.worker.shell import WorkerShell
from lockstep.worker.state import WorkerState
from lockstep.worker.team.helper import TeamProcess, never
from lockstep.worker.team.meeting import MeetingPlace
from lockstep.worker.team.progress import patience_of
from lockstep.worker.team.session import TeamContext


class WorkerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, or one process of it, as the flags ask for it."""

    address: str
    #: Seconds to wait for the server, None for as long as it takes.
    timeout: float | None = None
    cache: Path | None = None
    key: Path | None = None
    supervised: Path | None = None
    #: The folder in which a supervised one reports.
    link: ParentLink = msgspec.field(default_factory=ParentLink)
    #: Of the team; and which of them this one is and where they meet, None if it is the only one or starts them.
    processes: int
    process: int | None = None
    team: Path | None = None
    #: Whether it is a team of its own; otherwise, the size up to which it adds processes to the team of this machine.
    is_apart: bool = False
    limit: int = PROCESSES_LIMIT
    #: The team's name, if it is that of the ranks of a launcher on this host, and how many these are; and whether this
    #: is another one than the first.
    ranks: tuple[str, int] | None = None
    is_later_rank: bool = False

    @classmethod
    def of(cls, workers: int | None, **values: Any) -> "WorkerRequest":
        """Return a worker of so many processes, or by default of one per core that no other command has started."""
        one_per_core = default_processes()
        return cls(processes=workers or one_per_core, limit=PROCESSES_LIMIT if workers else one_per_core, **values)

    def arguments(self) -> list[str]:
        """Return the flags of each process of the team, without those that say which one it is."""
        given = {"--timeout": self.timeout, "--cache": self.cache, "--key": self.key}
        return [
            self.address,
            *(word for flag, value in given.items() if value is not None for word in (flag, str(value))),
        ]

    def cache_folder(self) -> Path:
        """Return the folder for samples that the server sends."""
        return self.cache or Path(own_cache())

    def meeting(self) -> MeetingPlace | None:
        """Return the place where the processes of the team meet, None if there is one process."""
        if self.team is None or self.process is None:
            return None
        return MeetingPlace.open(self.team, self.process, self.processes)

    def context(self) -> TeamContext:
        """Return the clock, folders and meeting place of this process."""
        patience = patience_of(self.processes, cores())
        return TeamContext(
            clock=SystemClock(), say=self.link.say, patience=patience, root=shared_root(), meeting=self.meeting()
        )


@click.command(short_help="Compute for the server at an address.")
@click.argument("address")
@click.option(
    "--workers",
    type=whole_number(1, PROCESSES_LIMIT),
    metavar="INT",
    help="processes to add to the worker of this machine  [as many as it needs to have one per core]",
)
@click.option(
    "--apart", "is_apart", is_flag=True, help="be another worker than other commands of this machine, as an audit needs"
)
@TIMEOUT_OPTION
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="folder for samples from a server whose job has ship_data  [~/.cache/lockstep]",
)
@KEY_OPTION
@SUPERVISED_OPTION
@click.option("--process", type=whole_number(0), hidden=True, help="which process of the team this is: 0 leads it")
@click.option("--team", type=click.Path(path_type=Path), hidden=True, help="folder in which the team meets")
@click.option("--ranks", type=(str, int), hidden=True, help="the team of a host's ranks, and how many these are")
@passes_link
def worker(link: ParentLink, /, address: str, workers: int | None, **flags: Any) -> int:
    """Compute for the server at ADDRESS until its run is over.

    The job comes from the server. A worker may start before the server. It is a team of processes, one per core, which
    share memory and one connection; the server counts each process as a worker. A second command on one machine, of the
    same address, key and cores, joins that team: with --workers, it adds processes. Otherwise, it waits until another
    command ends, and replaces its processes. A worker runs on any machine, or with native numerics on any machine of
    the server's kind. If the server is lost, it keeps its data and waits for a server that is restarted at ADDRESS.
    Exit codes: 0 the run is done, 1 the run failed or no server answered, 2 the server refused this worker, 130
    interrupted.

    \b
      lockstep worker tcp://192.168.1.7:5555 --key worker-1.key
      lockstep worker tcp://192.168.1.7:5555 --key worker-1.key --workers 4
      lockstep worker ipc:///tmp/lockstep.sock --timeout 60
    """
    request = WorkerRequest.of(workers, address=address, link=link, **flags)
    if (request.process is None) != (request.team is None):
        raise UsageError("--process and --team belong together: expected both, or none")
    if request.key is not None and request.supervised is None:
        # The processes of `lockstep node` may see the server's folder, and use its key.
        check_worker_key(request.key)
    return take_place(request)


def take_place(request: WorkerRequest) -> int:
    """Be what the request asks for, until the run is over; return the exit code."""
    try:
        return _take_place(request)
    except KeyboardInterrupt:
        if request.supervised is None:
            raise
        # It is for the parent to show that, or not to: it ends this process if the team has another size, too.
        request.link.report(EndReport(text="interrupted"))
        return INTERRUPTED


def _take_place(request: WorkerRequest) -> int:
    demand_open_files(request.processes)
    # Of a server that was killed, and of which no other starts here.
    sweep(shared_root())
    if request.process:
        return take_part(functools.partial(be_in_team, request), request.supervised)
    # Shown to all servers of the run.
    credential = credential_of(request.key, request.supervised)
    # One that is wrong is reported once, and before anything is started.
    server_at(request.address)
    if request.ranks is not None or (request.team is None and request.supervised is None and not request.is_apart):
        with ends_with_parent(request.supervised):
            return share_machine(request)
    if request.processes > 1 and request.team is None:
        return supervise(request)
    return lead(request, credential)


def lead(request: WorkerRequest, credential: Credential) -> int:
    """Be a worker alone, or the process of a team that has its connection; return the exit code."""
    give_way()
    # While it may use all cores of the team.
    context = request.context()
    join = own_join(request.processes)
    config = ClientConfig(address=request.address, join=join, timeout_s=request.timeout)
    with own_core(0, request.processes):
        port = dial(config.address, credential=credential)
        if not request.supervised:
            say(f"connecting to {request.address}")
        shell = WorkerShell(
            WorkerState(config),
            ServerConnections(port, functools.partial(dial, credential=credential), PortPoller()),
            context,
            functools.partial(gather, load=functools.cache(load), cache=request.cache_folder()),
        )
        return take_part(shell.run, request.supervised)


def be_in_team(request: WorkerRequest, is_over: Callable[[], bool] = never) -> Exit:
    """Be a process that its team's leader gives work to, until the run or this is over."""
    give_way()
    context = request.context()
    assert context.meeting is not None  # the flags have one, or none of them
    with own_core(context.meeting.process, request.processes):
        process = TeamProcess(context, context.meeting, functools.cache(load), request.cache_folder())
        return process.run(is_over)


def supervise(request: WorkerRequest) -> int:
    """Start the processes of a team and keep them going until the run is over; return the exit code of the leader."""
    if not request.supervised:
        say(f"connecting to {request.address}")
    with ends_with_parent(request.supervised), starter() as start:
        crew = Crew(functools.partial(start, request))
        code = TeamSupervisor(crew, range(request.processes), SystemClock(), say, request.link.report).run()
    assert code is not None  # the leader is here
    return conclude(Exit(code=code, reason=""), is_silent=code != 0 or request.supervised is not None)


def share_machine(request: WorkerRequest) -> int:
    """Start processes of this machine's team while it needs them, until the run is over; return the exit code."""
    name, expected = request.ranks or (team_name(request), 1)
    with (
        starter() as start,
        MachineTeam.of(
            name,
            request.processes,
            request.limit,
            shared_root(),
            request.link.say,
            expected=expected,
            lowest=int(request.is_later_rank),
        ) as team,
    ):
        if not request.supervised:
            # Not before it has its places: a command that is started after this line gets others.
            say(f"connecting to {request.address}")
        ended = team.run(functools.partial(work_in_team, request, start))
    return conclude(ended, is_silent=ended.code != 0 or request.supervised is not None)


def work_in_team(
    request: WorkerRequest,
    start: Callable[[WorkerRequest, ProcessPlace], Child],
    view: TeamView,
    is_past: Callable[[], bool],
) -> int | None:
    """Keep the processes going that a command has in a team, until this is past or the team's leader has ended here."""
    mine = msgspec.structs.replace(request, team=view.folder, processes=view.size)
    if request.ranks is not None and LEADER.number not in view.numbers:
        # The launcher has started this process for it: a further one would take more memory.
        ended = be_in_team(msgspec.structs.replace(mine, process=view.numbers[0]), is_past)
        if ended.reason:  # of this process: the leader's end is that of the team, or another process leads it
            raise KeyboardInterrupt
        return None
    crew = Crew(functools.partial(start, mine))
    return TeamSupervisor(crew, view.numbers, SystemClock(), say, request.link.report, is_over=is_past).run()


def team_name(request: WorkerRequest) -> str:
    """Return the name of the team that commands of this machine share.

    Others would be another run or user, compute other bits, or leave cores idle.
    """
    server = parse(request.address)
    # Next to another folder, the same relative path is another server's.
    address = server.path.absolute() if isinstance(server, IpcAddress) else server
    return f"{address} {request.key} {core_numbers()} {network_id()} {fingerprint()}"


@contextmanager
def starter() -> Iterator[Callable[[WorkerRequest, ProcessPlace], Child]]:
    """Lend what starts the processes of requests, with a folder for them."""
    with run_folder() as folder, ProcessTemplate.of("worker") as template:
        yield functools.partial(start_process, folder, template)


def start_process(folder: Path, template: ProcessTemplate | None, request: WorkerRequest, place: ProcessPlace) -> Child:
    """Start one process of a team, in a folder of those that are started here."""
    number = place.number
    flags = [*team_arguments(request.team or folder / "team", number, request.processes), "--supervised", HERE]
    name, words = "a process of the team" if number else "the leader", ["worker", *request.arguments(), *flags]
    # Without the ending of logs that are kept: the last process removes it.
    return Child.start(name, words, folder / f"{number}", template=template, is_shown=not number)
