"""The loop of a process: it receives messages, and lets each part act at its deadline. Decides nothing."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.interrupts import held_back
from lockstep.common.statemachine.machine import PeerLeft, soonest
from lockstep.common.transport.port import Frames, PeerGone, PeerSlow, ServerPort

Event = TypeVar("Event")
Event_co = TypeVar("Event_co", covariant=True)

#: Messages that are handled before the next look at deadlines, at most.
MOST_AT_ONCE = 16


class TimedPart(Protocol[Event_co]):
    """A part of a process that acts at certain times."""

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do although no message comes."""

    def on_time(self, now: float) -> Sequence[Event_co]:
        """Handle that the time has come; return what happened."""


class Inbox(Protocol[Event_co]):
    """The messages of a process."""

    def listen(self, seconds: float | None) -> None:
        """Wait until a message may have come, or for so many seconds; for ever if that is None."""

    def take(self) -> Sequence[Event_co] | None:
        """Handle one message, or that peers are gone; return what that means, None if nothing has come."""


@dataclass
class EventLoop(Generic[Event]):
    """Lets events happen, one message or one deadline after the other."""

    clock: Clock
    inbox: Inbox[Event]
    parts: Sequence[TimedPart[Event]]
    #: Lets the process handle events, and whatever follows from them.
    dispatch: Callable[[Sequence[Event]], None]
    #: Whether a message is handled before a deadline that has passed. A server handles deadlines first: there may
    #: always be a message, and leases run out all the same. A client looks first whether a silent server has answered.
    messages_first: bool
    #: An interrupt finds an event handled, with all that is recorded of it, or not handled at all.
    hold: Callable[[], AbstractContextManager[None]] = held_back

    def deadline(self) -> float | None:
        """Return when something is due although no message comes."""
        return soonest(*(part.deadline() for part in self.parts))

    def step(self) -> bool:
        """Handle the passing of time, or one message; return whether anything happened."""
        deadline, now = self.deadline(), self.clock.now()
        if deadline is None or now < deadline:
            self.inbox.listen(None if deadline is None else deadline - now)
            return self._take()
        if not (self.messages_first and self._take()):
            with self.hold():
                self.dispatch([event for part in self.parts for event in _due(part, now)])
        return True

    def _take(self) -> bool:
        with self.hold():
            happened = self.inbox.take()
            if happened is not None:
                self.dispatch(happened)
        return happened is not None


def _due(part: TimedPart[Event], now: float) -> Sequence[Event]:
    deadline = part.deadline()
    return part.on_time(now) if deadline is not None and now >= deadline else []


def deliver(port: ServerPort, peer: bytes, frames: Frames) -> list[PeerLeft]:
    """Send frames to a peer; return that it has left if that cannot be."""
    try:
        port.send(peer, frames)
    except PeerGone:
        return [PeerLeft(peer=peer, reason="its connection is gone")]
    except PeerSlow:
        return [PeerLeft(peer=peer, reason="it does not read what it is sent")]
    return []
