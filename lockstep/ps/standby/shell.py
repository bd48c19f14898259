"""A standby's shell: turns frames into events and effects into frames and files. Decides nothing."""

from collections.abc import Callable, Iterable, Sequence
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
    MirrorRequest,
    Promote,
    RunFiles,
    ToStandbyMessage,
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.client import Exit, ProtocolBroken, Redial, SendToServer
from lockstep.common.statemachine.loop import EventLoop, deliver
from lockstep.common.statemachine.machine import (
    Interrupted,
    PeerLeft,
    Received,
    Report,
    Send,
    Started,
    TimePassed,
    carry_out,
)
from lockstep.common.transport.auth.keys import is_standbys
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import LINGER_S, ClientPort, Dial, PeerSlow, ServerPort, Wait
from lockstep.ps.records.run_folder import RESULT
from lockstep.ps.standby.state import (
    FOLLOWS,
    PartReceived,
    StandbyEffect,
    StandbyEvent,
    StandbyState,
    TakeOver,
)


@dataclass
class StandbyShell:
    """A standby's process: its state, and what carries out the effects of the state."""

    state: StandbyState
    #: The port that workers dial, and persons.
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
    _is_checked: bool = False
    #: Set once it has ended without taking over, or takes over.
    ended: Exit | TakeOver | None = None
    loop: EventLoop[StandbyEvent] = field(init=False)

    def __post_init__(self) -> None:
        self.loop = EventLoop(self.clock, self, (self,), self.dispatch, messages_first=True)

    def run(self) -> Exit | TakeOver:
        """Mirror the run until it is over, or is to be led from here: then the folder is that of a run."""
        try:
            self.dispatch([Started()])
            while self.ended is None:
                self.step()
        except KeyboardInterrupt:
            self.dispatch([Interrupted()])
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
        return self.loop.step()

    # What happens

    def deadline(self) -> float | None:
        """Return when something is due although no message comes."""
        return self.state.deadline()

    def on_time(self, now: float) -> Sequence[StandbyEvent]:
        """Return that time has passed; if no server has answered yet, first what prevents it."""
        found = None if self.state.offer is not None else self.upstream.diagnosis()
        return [TimePassed()] if found is None else [found, TimePassed()]

    def listen(self, seconds: float | None) -> None:
        """Wait until a message may have come, or for so many seconds."""
        self.wait((self.upstream, self.port), seconds)
        for text in self.rejections.due(self.clock.now()):
            self.say(text)

    def take(self) -> Sequence[StandbyEvent] | None:
        """Return what one message means, or that peers are gone; None if nothing has come."""
        frames = self.upstream.receive(0.0)
        if frames is not None:
            return [_event_of(frames)]
        received = self.port.receive(0.0)
        if received is not None:
            return self._events_of(*received)
        return [PeerLeft(peer=peer, reason="its connection is gone") for peer in self.port.lost()] or None

    def _events_of(self, peer: bytes, frames: list[memoryview]) -> Sequence[StandbyEvent]:
        try:
            message, _ = decode(frames, AtStandbyMessage)
        except RemoteProtocolError as error:
            return self._answer(peer, answer_to_stranger(frames, error))
        if isinstance(message, Promote | MirrorRequest) and not is_standbys(self.port.key_name(peer)):
            text = "this takes the key of the server, or of a standby"
            refused = Refused(reason=text)
            is_command = isinstance(message, Promote)
            return self._answer(peer, CommandOutcome(is_accepted=False, text=text) if is_command else refused)
        return [Received(peer=peer, message=message)]

    def _answer(self, peer: bytes, message: Message) -> Sequence[StandbyEvent]:
        return deliver(self.port, peer, encode(message))

    def dispatch(self, happened: Sequence[StandbyEvent]) -> None:
        """Let the machine handle events, and whatever its effects lead to."""
        carry_out(self.state, happened, self._perform, self.clock.now)
        if self.state.mirror.held is not None and not self._is_checked:
            self._is_checked = True
            self.check()

    # From effects to actions

    def _perform(self, effect: StandbyEffect) -> Iterable[StandbyEvent]:
        match effect:
            case SendToServer(message=message):
                with suppress(PeerSlow):  # a server that reads nothing is asked again
                    self.upstream.send(encode(message))
            case Send():
                return self._answer(effect.peer, effect.message)
            case Redial(server=server):
                self.upstream.close(LINGER_S)
                self.upstream = self.dial(server.address, server.public)
            case Report(text=text):
                self.say(text)
            case Exit() | TakeOver():
                self.ended = effect
            case _:
                assert_never(effect)
        return []


def _event_of(frames: list[memoryview]) -> StandbyEvent:
    """Return what a message of the server that is mirrored means."""
    try:
        message, arrays = decode(frames, ToStandbyMessage)
    except RemoteProtocolError as error:
        return ProtocolBroken(fault=str(error))
    if isinstance(message, FilePart):
        return PartReceived(part=message, data=arrays[0].tobytes()[: message.size])
    assert isinstance(message, RunFiles | LeaderNotice | NotLeading | Refused)  # these are all others
    return message


def answer_to_stranger(frames: list[memoryview], fault: RemoteProtocolError) -> Message:
    """Return the answer to a message that is not for a standby: a worker takes it for an earlier server here.

    Such a worker asks for a place again, and then goes to the server that leads the run. Anything else is refused.
    """
    try:
        decode(frames, WorkerMessage)
    except RemoteProtocolError:
        return Refused(reason=shortened(f"this is a standby, which does not lead the run: {fault}"))
    return Eviction(reason=FOLLOWS)
