"""The server of a run: from a job, an address and a folder to a result. By hand, under `train`, or in a simulation."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace
from rich.console import Console

from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import load
from lockstep.common.errors import FailureKind, RunError, SharingError
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import Finished
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.interrupts import held_back
from lockstep.common.runtime.notice import warning
from lockstep.common.transport.auth.credentials import Lock, ServerKeys
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import LINGER_S, Limits, PeerGone, PeerSlow, ServerPort
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
from lockstep.results.display import Display, Lines, counted, display_for, print_plainly
from lockstep.runs.session import Destination, RunSession, open_run_in, open_session
from lockstep.runs.single_process import recompute_micro_batch


class Service(msgspec.Struct, frozen=True):
    """A run to be served: its job, and its destination, which has its options."""

    job: Job
    destination: Destination
    #: Whether the run leaves a picture.
    has_picture: bool = True
    #: A page that shows the run, or its figures for Prometheus; None if there is to be none.
    page: PageRequest | None = None


#: Messages that may wait for a peer of a server with shards: enough for the vectors of 100 million values, and for as
#: many commands. For more, its port is opened again, and all have to dial again.
MOST_QUEUE = 2048


#: Seconds for which a server of a finished run answers: processes that wait for it ask more often.
FAREWELL_S = 5.0


class Listening(msgspec.Struct, frozen=True):
    """The address of a server, the lock of its port, and the connections that it has rejected."""

    bind: str
    lock: Lock
    is_insecure: bool
    rejections: RejectionLog = msgspec.field(default_factory=RejectionLog)

    def serve(self, options: RunOptions) -> ServerPort:
        """Listen, for a run with these options; a large model needs more room, once it is known."""
        limits = Limits() if options.servers == 1 else Limits(queue=MOST_QUEUE)
        return serve(self.bind, lock=self.lock, insecure=self.is_insecure, limits=limits, rejections=self.rejections)


def serve_supervised(service: Service, listening: Listening, link: ParentLink) -> None:
    """Serve the run of a `train`, which shows the progress itself."""
    with closing(listening.serve(service.destination.options)) as port:
        # Before the data is loaded, so that the workers start at the same time.
        link.report(ListeningReport(address=nearby(port.address)))
        serve_run(service, port, Display(Lines(link.say), SystemClock()), listening, load(service.job.data))


def serve_by_hand(service: Service, listening: Listening) -> None:
    """Serve a run that a person has started, or an engine has restarted, and show it."""
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
        if shards := service.destination.options.servers - 1:
            print_plainly(console, f"and {counted(shards, 'shard')} with:")
            print_plainly(console, f"  lockstep shard {dialled(port.address)}{' --keys DIR' if has_keys else ''}")
        folder = service.destination.folder
        with kept_on_failure(console, folder), watched(page, display_for(console, SystemClock())) as display:
            result = serve_run(service, port, display, listening, data)
    show_end(console, result, folder, has_picture=service.has_picture)


def dismiss(listening: Listening, options: RunOptions) -> None:
    """Tell processes that wait for the server of a finished run that it is over, for a few seconds.

    The server may have been lost after it wrote the result, and before all of them learned that.
    """
    clock, finished = SystemClock(), encode(Finished(reason=""))
    with closing(listening.serve(options)) as port:
        until = clock.now() + FAREWELL_S
        while (left := until - clock.now()) > 0.0:
            if (received := port.receive(left)) is not None:
                with suppress(PeerGone, PeerSlow):
                    port.send(received[0], finished)
        port.close(LINGER_S)


def serve_run(service: Service, port: ServerPort, display: Display, listening: Listening, data: TrainTest) -> RunResult:
    """Serve a run to its end and return its result; a `RunError` or `KeyboardInterrupt` says how it failed.

    If a shard is lost, the run resumes here from the last checkpoint, or from the first step without a checkpoint, as
    it does in a server that was restarted. If an audit finds a worker that computes wrongly, it is resumed from a
    checkpoint before that worker's results.
    """
    losses = Losses(service.destination.options.max_restarts)
    try:
        while True:
            ended, session = serve_once(service, port, display, listening, data)
            if ended.kind is FailureKind.SERVER_LOST and losses.may_resume(session):
                display.say(warning(ended.failure))
            elif ended.kind is not FailureKind.ROLLBACK:
                return result_of(ended, session)
            # Workers that were evicted, or whose host is lost, do not come back.
            options = replace(service.destination.options, min_workers=1)
            service = replace(service, destination=replace(service.destination, options=options, is_resumed=True))
    finally:
        port.close(LINGER_S)


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


def result_of(ended: Finish, session: RunSession) -> RunResult:
    """Return the result of a run that has ended well; raise why it failed otherwise."""
    if ended.kind in (FailureKind.INTERRUPTED, FailureKind.STOPPED):
        raise KeyboardInterrupt
    if ended.kind is not None:
        raise ERRORS.get(ended.kind, RunError)(ended.failure.rstrip())
    result = session.recorder.result
    assert result is not None
    return result


def serve_once(
    service: Service, port: ServerPort, display: Display, listening: Listening, data: TrainTest
) -> tuple[Finish, RunSession]:
    """Serve a run until it has ended, or has lost a shard."""
    clock = SystemClock()
    started = clock.now()
    destination = replace(service.destination, part=secrets.token_hex(4))
    transport = destination.options.transport
    setup = open_run_in(destination, service.job, data)
    with shared_memory(setup, transport, shared_root()) as offer:
        setting = Setting(transport=port.address.partition(":")[0], obstacle=offer.obstacle, started=started)
        context = ServerContext(
            port,
            clock,
            display.say,
            # With the address, which the coordinator does not know.
            remind=lambda text: display.remind(f"{text}, at {port.address}"),
            sharing=offer.memory,
            rejections=listening.rejections,
            recompute=recompute_micro_batch,
        )
        server, session = open_server(offer.setup, destination, setting, context)
        if offer.obstacle:
            display.say(f"gradients and weights go through sockets: {offer.obstacle}")
        return server.run(watch=lambda: display.show(server.coordinator.status(clock.now()))), session


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
        setup = replace(setup, info=replace(setup.info, part=destination.part))
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
