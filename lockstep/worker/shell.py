"""The worker's shell: turns frames into events and effects into frames. Decides nothing."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import assert_never

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import Diagnosis, LockstepError, RemoteProtocolError
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import (
    Lease,
    Message,
    MultiStepLease,
    Ping,
    Result,
    Samples,
    ServerMessage,
    Status,
    Weights,
    Welcome,
    Withdrawal,
)
from lockstep.common.protocol.shard_messages import ShardWelcome
from lockstep.common.runtime.clock import ThreadClock
from lockstep.common.statemachine.client import ClientEvent, Exit, PreparationFailed
from lockstep.common.statemachine.client_shell import ClientShell
from lockstep.common.statemachine.loop import EventLoop
from lockstep.common.statemachine.machine import TimePassed
from lockstep.worker import state as machine
from lockstep.worker.connections import SEND_TIMEOUT_S, ServerConnections
from lockstep.worker.session import WorkerSession
from lockstep.worker.setup import LoadedRun
from lockstep.worker.state import WorkerState
from lockstep.worker.team.meeting import Session, announce
from lockstep.worker.team.session import TeamContext


@dataclass
class WorkerShell(ClientShell[machine.WorkEvent, machine.WorkEffect]):
    """One worker: its state, its connections, and its part in the run that it has joined."""

    state: WorkerState
    servers: ServerConnections
    #: The clock, folders and meeting place of the worker's team.
    context: TeamContext
    #: Builds the model of a run, and loads its data.
    gather: Callable[[Welcome], LoadedRun]
    ended: Exit | None = None
    expected = ServerMessage
    arrays: list[Vector] = field(default_factory=list)
    clock: ThreadClock = field(init=False)
    say: Callable[[str], None] = field(init=False)
    loop: EventLoop[machine.Event] = field(init=False)
    #: None before the first welcome.
    session: WorkerSession | None = None

    def __post_init__(self) -> None:
        self.clock, self.say = self.context.clock, self.context.say
        self.loop = EventLoop(self.clock, self, (self,), self.dispatch_all, messages_first=True, hold=nullcontext)

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
        meeting = self.context.meeting
        if meeting is not None:
            if self.ended is not None:
                announce(meeting, Session(code=self.ended.code, reason=self.ended.reason))
            meeting.close()
        self.servers.close()

    def _joined(self) -> WorkerSession:
        """Return the session; `RemoteProtocolError` before the welcome."""
        if self.session is None:
            raise RemoteProtocolError("work before the welcome")
        return self.session

    # The loop's only part, and its inbox

    def _is_team_busy(self) -> bool:
        return self.session is not None and self.session.is_busy

    def deadline(self) -> float | None:
        """Return when `step` has something to do even if no message comes: with work, a moment that is past."""
        has_work = self.state.has_work() or bool(self.servers.early) or self._is_team_busy()
        return self.state.client.heard if has_work else self.state.deadline()

    def on_time(self, now: float) -> Sequence[machine.Event]:
        if self.session is not None and self.session.is_busy:
            return self._work(self.session, now)
        if self.state.has_work():
            return [machine.InboxEmptied()]
        self.expire()
        return []

    def listen(self, seconds: float | None) -> None:
        self.servers.listen(seconds)

    def take(self) -> Sequence[machine.Event] | None:
        """Handle one message; those that come while the team is busy wait."""
        frames = None if self._is_team_busy() else self.servers.take()
        if frames is None:
            return None
        self.on_server_message(frames)
        return []

    def _work(self, session: WorkerSession, now: float) -> Sequence[machine.Event]:
        """Continue the team's order; now and then, handle a message, or find out that the order is withdrawn."""
        if not self.state.is_busy():
            session.stop()  # it has left the run
            return []
        if session.is_withdrawn():
            return session.stop()
        if session.work is not None and session.work.lets_messages_in:
            if self.servers.early:
                self.on_server_message(self.servers.early.popleft())
                return []
            if self._misses_server(now):
                return [TimePassed()]
        return session.advance(now)

    def _misses_server(self, now: float) -> bool:
        """Return whether it is time to ask the server, which sends nothing while a team makes steps: it may be gone."""
        due = self.state.client.deadline()
        return due is not None and now >= due

    # From messages to events

    def events_of(self, message: Message) -> Sequence[machine.Event]:
        match message:
            case Samples():
                return [self._joined().store(message, self.arrays[0])]
            case Weights():
                return self._joined().install(message, self.arrays)
            case Lease():
                return [*self._joined().install(message, self.arrays), self._joined().check_lease(message)]
            case MultiStepLease():
                return self._joined().check_steps(message, self.state.client.join().incarnation)
            case Status():
                return []
            case _ if isinstance(message, Welcome | machine.Request):
                return [message]
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is not a message for a worker")

    # From effects to actions

    def send_to_server(self, message: Message) -> None:
        if isinstance(message, Result):
            self.servers.send(encode(message, self._joined().carried_by(message)), SEND_TIMEOUT_S)
        else:
            self.servers.send(encode(message))

    def diagnosis(self) -> Diagnosis | None:
        return self.servers.first.diagnosis()

    def perform(self, effect: machine.WorkEffect) -> Iterable[machine.Event]:
        match effect:
            case Ping():
                self.servers.introduce()
                return []
            case Lease():
                return self._joined().begin_lease(effect, self.state.leases)
            case MultiStepLease():
                return self._joined().begin_steps(effect)
            case Withdrawal():
                return self._joined().stop()
            case _:
                assert_never(effect)

    def prepare(self, welcome: Welcome | ShardWelcome) -> ClientEvent:
        assert isinstance(welcome, Welcome)
        if self.session is not None:
            self.session.close()
            self.session = None
        try:
            if self.context.meeting is not None:
                announce(self.context.meeting, Session(welcome=welcome))
            loaded = self.gather(welcome)
            session = WorkerSession(welcome, loaded, self.context, self.servers)
            session.connect(self.state.client.join().incarnation)
        except LockstepError as error:
            return PreparationFailed(reason=str(error))
        self.session = session
        return session.ready()
