"""A standby's shell: turns frames into events and effects into frames and files. Decides nothing."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import assert_never

from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Eviction, Message, NotLeading, Refused, WorkerMessage, shortened
from lockstep.common.protocol.standby_messages import (
    AtStandbyMessage,
    CommandOutcome,
    FilePart,
    LeaderNotice,
    Promote,
    RunFiles,
    ToStandbyMessage,
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.client import Exit, ObstacleFound, ProtocolBroken, Redial, SendToServer, Started
from lockstep.common.statemachine.loop import deliver
from lockstep.common.statemachine.machine import Interrupted, PeerLeft, Received, Report, Send, TimePassed, carry_out
from lockstep.common.transport.auth.keys import is_standbys
from lockstep.common.transport.diagnosis import Diagnosis
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.links import Wait
from lockstep.common.transport.port import ClientPort, Dial, PeerSlow, ServerPort
from lockstep.ps.records.run_folder import RESULT
from lockstep.ps.standby.state import (
    FOLLOWS,
    PartReceived,
    StandbyEffect,
    StandbyEvent,
    StandbyState,
    TakeOver,
)

#: Seconds for which the last messages may still be sent to a server that is left.
LINGER_S = 1.0


@dataclass
class StandbyShell:
    """A standby's process: its state, and what carries out the effects of the state."""

    state: StandbyState
    #: Where workers dial, and persons.
    port: ServerPort
    #: To the server that is mirrored.
    upstream: ClientPort
    #: How another server is reached.
    dial: Dial
    clock: Clock
    say: Callable[[str], None]
    wait: Wait
    rejections: RejectionLog = field(default_factory=RejectionLog)
    #: Called once the mirror has all for the first time: raises if this machine could not lead the run.
    check: Callable[[], None] = lambda: None
    #: Finds out what prevents a connection to the server that a person named, None if nothing can.
    diagnose: Callable[[], Diagnosis | None] | None = None
    _is_checked: bool = False
    #: Set once it has ended without taking over, or takes over.
    ended: Exit | TakeOver | None = None

    def run(self) -> Exit | TakeOver:
        """Mirror the run until it is over, or is to be led from here: then the folder is that of a run."""
        try:
            self.dispatch(Started())
            while self.ended is None:
                self.step()
        except KeyboardInterrupt:
            self.dispatch(Interrupted())
        finally:
            self.close()
        assert self.ended is not None
        return self.ended

    def close(self) -> None:
        """Conclude the mirror if the run is led from here, or is over; close all connections unless it is led."""
        mirror = self.state.mirror
        is_led = isinstance(self.ended, TakeOver)
        if is_led or (mirror.held is not None and (mirror.folder / RESULT).exists()):
            mirror.conclude()
        mirror.discard_coming()
        if not is_led:
            self.upstream.close(LINGER_S)
            self.port.close(LINGER_S)

    def step(self) -> bool:
        """Handle one message, or the passing of time; return whether anything happened."""
        if self._receive():
            return True
        deadline = self.state.deadline()
        left = None if deadline is None else deadline - self.clock.now()
        if left is not None and left <= 0.0:
            self._find_obstacle()
            self.dispatch(TimePassed())
            return True
        self.wait((self.upstream, self.port), left)
        for text in self.rejections.due(self.clock.now()):
            self.say(text)
        return self._receive()

    def _find_obstacle(self) -> None:
        """Find out what prevents a connection, if no server has answered yet."""
        diagnosis = None if self.diagnose is None or self.state.offer is not None else self.diagnose()
        if diagnosis is not None:
            self.dispatch(ObstacleFound(obstacle=diagnosis.text, is_final=diagnosis.is_final))

    # From messages to events

    def _receive(self) -> bool:
        frames = self.upstream.receive(0.0)
        if frames is not None:
            self._on_server_message(frames)
            return True
        received = self.port.receive(0.0)
        if received is not None:
            self._on_message(*received)
            return True
        lost = self.port.lost()
        for peer in lost:
            self.dispatch(PeerLeft(peer=peer, reason="its connection is gone"))
        return bool(lost)

    def _on_server_message(self, frames: list[memoryview]) -> None:
        event: StandbyEvent
        try:
            message, arrays = decode(frames, ToStandbyMessage)
            if isinstance(message, FilePart):
                event = PartReceived(part=message, data=arrays[0].tobytes()[: message.size])
            else:
                assert isinstance(message, RunFiles | LeaderNotice | NotLeading | Refused)  # what else there may be
                event = message
        except RemoteProtocolError as error:
            event = ProtocolBroken(fault=str(error))
        self.dispatch(event)

    def _on_message(self, peer: bytes, frames: list[memoryview]) -> None:
        try:
            message, _ = decode(frames, AtStandbyMessage)
        except RemoteProtocolError as error:
            self._answer(peer, answer_to_stranger(frames, error))
            return
        if isinstance(message, Promote) and not is_standbys(self.port.key_name(peer)):
            text = "this takes the key of the server, or of a standby"
            self._answer(peer, CommandOutcome(is_accepted=False, text=text))
            return
        self.dispatch(Received(peer=peer, message=message))

    def _answer(self, peer: bytes, message: Message) -> None:
        deliver(self.port, peer, encode(message))

    def dispatch(self, event: StandbyEvent) -> None:
        """Let the machine handle an event, and whatever its effects lead to."""
        carry_out(self.state, [event], self._perform, self.clock.now)
        if self.state.can_lead and not self._is_checked:
            self._is_checked = True
            self.check()

    # From effects to actions

    def _perform(self, effect: StandbyEffect) -> Iterable[StandbyEvent]:
        match effect:
            case SendToServer(message=message):
                with suppress(PeerSlow):  # a server that reads nothing is asked again
                    self.upstream.send(encode(message))
            case Send():
                return deliver(self.port, effect.peer, encode(effect.message))
            case Redial(server=server):
                self.diagnose = None
                self.upstream.close(LINGER_S)
                self.upstream = self.dial(server.address, server.public)
            case Report(text=text):
                self.say(text)
            case Exit() | TakeOver():
                self.ended = effect
            case _:
                assert_never(effect)
        return []


def answer_to_stranger(frames: list[memoryview], fault: RemoteProtocolError) -> Message:
    """Return the answer to what nobody sends a standby: to a worker that takes it for the server that was here before.

    Such a worker asks for a place again, and then goes to the server that leads the run. Anything else is refused.
    """
    try:
        decode(frames, WorkerMessage)
    except RemoteProtocolError:
        return Refused(reason=shortened(f"this is a standby, which does not lead the run: {fault}"))
    return Eviction(reason=FOLLOWS)
