"""The part of a client's shell that does not depend on its work: from frames to events, from effects to an exit."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import Diagnosis, RemoteProtocolError
from lockstep.common.protocol.codec import decode
from lockstep.common.protocol.messages import (
    Eviction,
    Finished,
    Message,
    Refused,
    Spare,
    Welcome,
)
from lockstep.common.protocol.shard_messages import ShardWelcome
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.client import (
    ClientEffect,
    ClientEvent,
    ClientPhase,
    Exit,
    ProtocolBroken,
    SendToServer,
)
from lockstep.common.statemachine.loop import EventLoop
from lockstep.common.statemachine.machine import Interrupted, Report, Started, TimePassed, carry_out

#: The messages that the client handles unchanged.
OF_THE_CLIENT = Refused | Eviction | Finished | Spare

Event = TypeVar("Event")
Effect = TypeVar("Effect")


class ClientShell(ABC, Generic[Event, Effect]):
    """Runs a machine whose own events and effects are `Event` and `Effect`. Decides nothing."""

    #: A machine that embeds a `Client`: `handle(event, now) -> effects`, and its `client`.
    state: Any
    clock: Clock
    say: Callable[[str], None]
    #: The union of messages that the server may send.
    expected: Any
    #: The arrays of the current message.
    arrays: list[Vector]
    #: Set once the process has ended.
    ended: Exit | None
    loop: EventLoop[Any]

    def run(self) -> Exit:
        """Work until the run is over, the server is gone, or the process is interrupted."""
        try:
            self.begin()
            while self.ended is None:
                self.step()
        except KeyboardInterrupt:
            self.interrupt()
        finally:
            self.close()
        assert self.ended is not None
        return self.ended

    def begin(self) -> None:
        """Ask for a place in the run."""
        self.dispatch(Started())

    def interrupt(self) -> None:
        """Leave the run now."""
        self.dispatch(Interrupted())

    def step(self) -> bool:
        """Handle one message, or the passing of time; return whether anything happened."""
        return self.loop.step()

    def dispatch_all(self, happened: Sequence[Event | ClientEvent]) -> None:
        """Let the machine handle events, one after the other."""
        for event in happened:
            self.dispatch(event)

    def on_server_message(self, frames: list[memoryview]) -> None:
        """Handle a message of the server's."""
        try:
            message, self.arrays = decode(frames, self.expected)
            events = [message] if isinstance(message, OF_THE_CLIENT) else self.events_of(message)
        except RemoteProtocolError as error:
            events = [ProtocolBroken(fault=str(error))]
        self.dispatch_all(events)

    def expire(self) -> None:
        """Handle that the deadline has passed; if no server has answered yet, find out first what prevents it."""
        if self.state.client.phase is ClientPhase.JOINING and (diagnosis := self.diagnosis()) is not None:
            self.dispatch(diagnosis)
        self.dispatch(TimePassed())

    def dispatch(self, event: Event | ClientEvent) -> None:
        """Let the machine handle an event, and whatever its effects lead to."""
        carry_out(self.state, [event], self._perform, self.clock.now)

    def _perform(self, effect: Effect | ClientEffect) -> Iterable[Event | ClientEvent]:
        match effect:
            case SendToServer():
                self.send_to_server(effect.message)
            case Report():
                self.say(effect.text)
            case Exit():
                self.ended = effect
            case Welcome() | ShardWelcome():
                return [self.prepare(effect)]
            case _:
                return self.perform(effect)
        return []

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""

    @abstractmethod
    def events_of(self, message: Message) -> Sequence[Event | ClientEvent]:
        """Return what a message of the server's means; `RemoteProtocolError` if it must not be sent."""

    @abstractmethod
    def diagnosis(self) -> Diagnosis | None:
        """Find out what prevents the connection to the server, None if nothing is known to."""

    @abstractmethod
    def send_to_server(self, message: Message) -> None:
        """Send a message without arrays."""

    @abstractmethod
    def prepare(self, welcome: Welcome | ShardWelcome) -> ClientEvent:
        """Get what the welcome demands."""

    @abstractmethod
    def perform(self, effect: Effect) -> Iterable[Event | ClientEvent]:
        """Carry out an effect of the machine; yield the events that follow."""
