"""The server of a run: from a job, an address and a folder to a result. By hand, under `train`, or in a simulation."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace
from rich.console import Console

from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import load
from lockstep.common.errors import FailureKind, LedElsewhereError, RunError, SharingError
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import StandbyAddress
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.environment import machine_id
from lockstep.common.runtime.interrupts import held_back
from lockstep.common.runtime.notice import notice, warning
from lockstep.common.statemachine.leader_inquiry import LeaderInquiry
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.transport.auth.credentials import Lock, ServerKeys
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import LINGER_S, Dial, Limits, ServerPort
from lockstep.common.transport.shared_memory.folder import shared_root, sweep
from lockstep.common.transport.transports import TRANSPORTS, MemorySharing, Transport
from lockstep.common.transport.zeromq.ports import serve
from lockstep.launch.endpoints import WARNING, dialled, nearby
from lockstep.launch.page_process import PageRequest, page_beside, watched
from lockstep.launch.run_end import kept_on_failure, show_end
from lockstep.launch.supervision.channel import ERRORS, ListeningReport, ParentLink
from lockstep.ps.checkpoint.resuming import Resumption, coordinator_of
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.records.recorder import Setting
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.run.info import RunInfo
from lockstep.ps.server.factory import ServerContext, build_server
from lockstep.ps.server.server import Server
from lockstep.ps.server.shared_memory import ServerSharedMemory, share
from lockstep.ps.setup import RunSetup
from lockstep.ps.standby.terms import read_terms
from lockstep.results.reports.display import Display, Lines, counted, display_for, print_plainly
from lockstep.runs.session import Destination, RunSession, open_run_in, open_session
from lockstep.runs.single_process import recompute_micro_batch


class Service(msgspec.Struct, frozen=True):
    """A run to be served: its job, and its destination, which has its options."""

    job: Job
    destination: Destination
    #: How other servers are reached.
    dial: Dial
    #: Whether the run leaves a picture.
    has_picture: bool = True
    #: A page that shows the run, or its figures for Prometheus; None if there is to be none.
    page: PageRequest | None = None
    #: Whether a SIGTERM hands the run over to a standby, if there is one. Not under a `train`, which ends them all.
    hands_over: bool = False
    #: Other servers that may lead the run, of which the folder may not know.
    standbys: tuple[StandbyAddress, ...] = ()


#: Messages that may wait for a peer of a standby, or of a server with shards: enough for the vectors of 100 million
#: values, and for as many commands. For more, its port is opened again, and all have to dial again.
MOST_QUEUE = 2048


class Listening(msgspec.Struct, frozen=True):
    """The address of a server, the lock of its port, and the connections that it has rejected."""

    bind: str
    lock: Lock
    is_insecure: bool
    rejections: RejectionLog = msgspec.field(default_factory=RejectionLog)

    def serve(self, options: RunOptions | None = None) -> ServerPort:
        """Listen, for a new run with these options; a large model needs more room, once it is known.

        For a run of which nothing is known yet, there is room for the vectors of any that is not huge.
        """
        is_alone = options is not None and options.servers == 1 and options.spread == "never"
        limits = Limits() if is_alone else Limits(queue=MOST_QUEUE)
        return serve(self.bind, lock=self.lock, insecure=self.is_insecure, limits=limits, rejections=self.rejections)


def serve_supervised(service: Service, listening: Listening, link: ParentLink) -> None:
    """Serve the run of a `train`, which shows the progress itself."""
    with closing(listening.serve(service.destination.options)) as port:
        # Before the data is loaded, so that the workers start at the same time.
        link.report(ListeningReport(address=nearby(port.address)))
        serve_run(service, port, Display(Lines(link.say), SystemClock()), listening, load(service.job.data))


def serve_by_hand(service: Service, listening: Listening) -> RunResult | None:
    """Serve a run that a person has started, and show it; return its result, None if it was handed over."""
    # First: no worker is to be started for data that is refused.
    data, console = load(service.job.data), Console(highlight=False)
    has_keys = isinstance(listening.lock, ServerKeys)
    with (
        page_beside(service.page, service.destination.folder, partial(print_plainly, console)) as page,
        closing(listening.serve(service.destination.options)) as port,
    ):
        if listening.is_insecure:
            print_plainly(console, WARNING)
        print_plainly(console, f"listening on {port.address}; start workers with:")
        print_plainly(console, f"  lockstep worker {dialled(port.address)}{' --key FILE' if has_keys else ''}")
        shards = service.destination.options.servers - 1
        is_spread = service.destination.options.spread != "never"
        if shards or is_spread:
            those = "a shard on each other host" if is_spread else counted(shards, "shard")
            print_plainly(console, f"and {those} with:")
            print_plainly(console, f"  lockstep shard {dialled(port.address)}{' --keys DIR' if has_keys else ''}")
        folder = service.destination.folder
        with kept_on_failure(console, folder), watched(page, display_for(console, SystemClock())) as display:
            result = serve_run(replace(service, hands_over=True), port, display, listening, data)
    if result is not None:
        show_end(console, result, folder, has_picture=service.has_picture)
    return result


def serve_run(
    service: Service, port: ServerPort, display: Display, listening: Listening, data: TrainTest
) -> RunResult | None:
    """Serve a run to its end and return its result, None if it was handed over to a standby.

    A `RunError` or `KeyboardInterrupt` says how it failed. If a shard is lost, all of its servers resume from the last
    checkpoint, or from the first step without a checkpoint; they are not started again. If an audit finds a worker that
    computes wrongly, the run is resumed here from a checkpoint before its results.
    """
    options = service.destination.options
    losses = Losses(options.max_restarts)
    try:
        # A standby that takes over has been decided for, and does not wait: if another one leads, they find each other.
        if service.destination.is_resumed and service.destination.term is None:
            check_leader(service, dialled(port.address), SystemClock())
        while True:
            ended, session, is_in_vain = serve_once(service, port, display, listening, data)
            is_lost = ended.kind is FailureKind.SERVER_LOST
            if is_in_vain:
                display.say(warning("the standby did not take the run over: it goes on here"))
            elif is_lost and losses.may_resume(session):
                display.say(warning(ended.failure))
            elif ended.kind is FailureKind.SPREAD:
                display.say(notice(ended.failure))
            elif ended.kind is not FailureKind.ROLLBACK:
                return result_of(ended, session, display)
            options = options_after(ended, options)
            destination = replace(service.destination, options=options, is_resumed=True, term=None)
            service = replace(service, destination=destination)
    finally:
        port.close(LINGER_S)


def options_after(ended: Finish, options: RunOptions) -> RunOptions:
    """Return the options with which the same server continues a run after the end of a part of it."""
    servers = options.servers
    if ended.kind is FailureKind.SPREAD:
        servers = ended.servers
    elif ended.kind is FailureKind.SERVER_LOST and options.spread != "never":
        servers = 1  # the weights are divided again among those that are left
    # Workers that were evicted, or whose host is lost, do not come back.
    return replace(options, servers=servers, min_workers=1)


@dataclass
class Losses:
    """Limits the losses of servers in succession in which a run makes no progress."""

    most: int
    #: The steps of the checkpoint from which it was last resumed, 0 without one, and how often.
    steps: int = -1
    count: int = 0

    def may_resume(self, session: RunSession) -> bool:
        """Tell whether to resume a run after a loss: not at the same checkpoint, or without one, again and again."""
        steps = max(session.checkpointer.folder.steps(), default=0)
        self.count = self.count + 1 if steps == self.steps else 1
        self.steps = steps
        return self.count <= self.most


def result_of(ended: Finish, session: RunSession, display: Display) -> RunResult | None:
    """Return the result of a run that has ended well, None if it goes on elsewhere; raise why it failed otherwise."""
    if ended.kind is FailureKind.INTERRUPTED:
        raise KeyboardInterrupt
    if ended.kind is FailureKind.HANDED_OVER:
        display.say(notice(ended.failure))
        return None
    if ended.kind is not None:
        raise ERRORS.get(ended.kind, RunError)(ended.failure.rstrip())
    result = session.recorder.result
    assert result is not None
    return result


def check_leader(service: Service, own: str, clock: Clock) -> None:
    """Raise `LedElsewhereError` if another server leads the run that is to be resumed at the address `own` by now."""
    folder = service.destination.folder
    history = read_terms(folder)
    search = LeaderSearch(history.other_servers(own, service.standbys), own, term=history.last)
    inquiry = LeaderInquiry(search, service.dial)
    found = inquiry.find(clock, lambda answer: answer.term.is_above(history.last))
    if found is not None:
        _, answer = found
        leader = next((one for one in search.servers() if one.address == answer.address), None)
        raise LedElsewhereError(
            f"the run in {str(folder)!r} goes on at {answer.address}, in term {answer.term.number}: mirror "
            f"it in a new folder: lockstep server --standby-of {answer.address} --bind ADDRESS --run-dir "
            "DIR",
            answer.address,
            "" if leader is None else leader.public,
        )


def serve_once(
    service: Service, port: ServerPort, display: Display, listening: Listening, data: TrainTest
) -> tuple[Finish, RunSession, bool]:
    """Serve a run until it has ended, or has lost a server; return also whether it was handed over in vain."""
    clock = SystemClock()
    started = clock.now()
    destination = replace(service.destination, address=dialled(port.address))
    transport = destination.options.transport
    setup = open_run_in(destination, service.job, data)
    setup = replace(setup, info=replace(setup.info, machine=machine_id() or ""))
    with shared_memory(setup, transport, shared_root()) as offer:
        setting = Setting(transport=port.address.partition(":")[0], obstacle=offer.obstacle, started=started)
        lock = listening.lock
        context = ServerContext(
            port,
            clock,
            display.say,
            # With the address, which the coordinator does not know.
            remind=lambda text: display.remind(f"{text}, at {port.address}"),
            sharing=offer.memory,
            rejections=listening.rejections,
            recompute=recompute_micro_batch,
            allowed=lock.allowed if isinstance(lock, ServerKeys) else None,
            dial=service.dial,
            others=service.standbys,
            address=destination.address,
            hands_over=service.hands_over,
        )
        server, session = open_server(offer.setup, destination, setting, context)
        if offer.obstacle:
            display.say(f"gradients and weights go through sockets: {offer.obstacle}")
        ended = server.run(watch=lambda: display.show(server.coordinator.status(clock.now())))
    is_in_vain = server.succession.was_in_vain()
    if is_in_vain and server.is_leaving:
        raise KeyboardInterrupt
    return ended, session, is_in_vain


def open_server(
    setup: RunSetup,
    destination: Destination,
    setting: Setting,
    context: ServerContext,
    coordinator_at: Callable[[RunInfo, Resumption], Coordinator] = coordinator_of,
) -> tuple[Server, RunSession]:
    """Open a run's session, new or resumed, and return it after the server that leads the run from there.

    A `UsageError` says why the folder cannot be used. The session is closed again if anything is raised here.
    """
    session = open_session(setup, setting, destination, context.clock, context.say)
    try:
        setup = replace(setup, info=replace(setup.info, term=session.term))
        coordinator = coordinator_at(setup.info, session.start)
        server = build_server(coordinator, setup, session.checkpointer, context)
    except BaseException:
        session.recorder.close()
        raise
    return server, session


#: Why a run with several servers shares no memory, although it is asked for.
SEVERAL_SERVERS = "only a run with one server shares memory with its workers"


class MemoryOffer(msgspec.Struct, frozen=True):
    """A run, and the memory that it shares with workers on this machine, if any."""

    setup: RunSetup
    memory: ServerSharedMemory | None = None
    #: Why no memory is shared although the transport asks for it.
    obstacle: str = ""


@contextmanager
def shared_memory(setup: RunSetup, transport: Transport, root: Path) -> Iterator[MemoryOffer]:
    """Put a run's weights into memory that workers can share, for as long as the context lasts.

    With `auto` the run goes over sockets if that fails, with `shm` a `SharingError` is raised; others never share. A
    run with several servers always goes over sockets.
    """
    # Whatever the transport is: those that were killed may have had another.
    sweep(root)
    offer = _offer(setup, transport, root)
    try:
        yield offer
    finally:
        if offer.memory is not None:
            # An interrupt is deferred and not ignored: after a loss the run would be resumed in spite of it.
            with held_back():
                offer.memory.close()


def _offer(setup: RunSetup, transport: Transport, root: Path) -> MemoryOffer:
    sharing = TRANSPORTS[transport].memory
    if sharing is MemorySharing.NEVER:
        return MemoryOffer(setup)
    if setup.info.options.servers > 1:
        return MemoryOffer(setup, obstacle=SEVERAL_SERVERS if sharing is MemorySharing.ALWAYS else "")
    try:
        shared, memory = share(setup, root)
    except SharingError as error:
        if sharing is MemorySharing.ALWAYS:
            raise
        return MemoryOffer(setup, obstacle=str(error))
    info = replace(shared.info, needs_memory=sharing is MemorySharing.ALWAYS)
    return MemoryOffer(replace(shared, info=info), memory)
