"""The base of all state machines: a table of legal transitions, the events and effects that each knows, and one loop.

A machine decides, and its shell carries out what it has decided. The table says for each event, and for each message
that a peer sends, which phases may follow in which phase, whether it is ignored there, or a bug of ours. The tests and
the diagrams in the docs are made from it.
"""

import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, ClassVar, Generic, TypeVar

from msgspec import Struct

from lockstep.common.errors import ProtocolError
from lockstep.common.protocol.messages import Message

Phase = TypeVar("Phase", bound=Enum)
Event = TypeVar("Event")
Effect = TypeVar("Effect")

#: Nothing happens: late and duplicate messages end here, not in an `if`.
IGNORED: frozenset[Any] = frozenset()

#: Our own shell would have to be wrong for this to happen.
ILLEGAL = None

#: By phase and event, or message, the phases that may follow, `IGNORED`, or `ILLEGAL`.
TransitionTable = Mapping[tuple[Any, type], frozenset[Any] | None]

#: For one event, what may follow in the phases that are named.
Row = dict[Phase, Collection[Phase] | None]


def stays(*phases: Phase) -> Row[Phase]:
    """Return the row of an event that changes nothing in these phases."""
    return {phase: {phase} for phase in phases}


def leads(to: Collection[Phase] | None, *phases: Phase) -> Row[Phase]:
    """Return the row of an event after which one of these may follow, in any of the phases."""
    return dict.fromkeys(phases, to)


def table_of(
    phases: type[Phase],
    rows: Mapping[type, Mapping[Phase, Collection[Phase] | None]],
    *,
    otherwise: frozenset[Any] | None = ILLEGAL,
) -> dict[tuple[Phase, type], frozenset[Phase] | None]:
    """Return the table with these rows; `otherwise` holds in phases that a row does not name."""
    return {
        (phase, event): otherwise if (targets := row.get(phase, otherwise)) is None else frozenset(targets)
        for event, row in rows.items()
        for phase in phases
    }


# Events and effects


class Started(Struct, frozen=True, kw_only=True):
    """The machine's process has begun, and nothing else has happened yet."""


class Received(Struct, frozen=True, kw_only=True):
    """A peer has sent a message."""

    peer: bytes
    message: Message
    #: The name of the key with which the peer was let in, empty if there are no keys or if it does not matter.
    key: str = ""


class PeerLeft(Struct, frozen=True, kw_only=True):
    """A peer said so, broke the protocol, or can no longer be reached."""

    peer: bytes
    reason: str


class TimePassed(Struct, frozen=True, kw_only=True):
    """The deadline came before anything else did."""


class Interrupted(Struct, frozen=True, kw_only=True):
    """A person or the system wants this process to end now."""


class Send(Struct, frozen=True, kw_only=True):
    """Send a peer a message that carries no array."""

    peer: bytes
    message: Message


class ReportKind(Enum):
    """The kinds of reports, which a process may show in different ways."""

    NEWS = "news"
    #: It repeats, now and then, what the process still waits for.
    REMINDER = "reminder"
    #: A process was not admitted, which may try again and again.
    REFUSAL = "refusal"


class Report(Struct, frozen=True, kw_only=True):
    """Print a line for the person at this process."""

    text: str
    kind: ReportKind = ReportKind.NEWS


def kind_of(event: object) -> type:
    """Return by what the table knows an event: by its class, or by that of the message that was received."""
    return type(event.message) if isinstance(event, Received) else type(event)


class Machine(ABC, Generic[Event, Effect]):
    """A state machine that obeys a table. Pure: time is an argument."""

    transitions: ClassVar[TransitionTable]
    phase: Any

    @abstractmethod
    def handle(self, event: Event, now: float) -> list[Effect]:
        """Handle an event at `now` seconds; return the effects, in order."""

    @abstractmethod
    def deadline(self) -> float | None:
        """Return when `TimePassed` is due if nothing happens before, None if only a message can move the machine."""

    def on_time(self, now: float) -> list[TimePassed]:
        """Return the event that the deadline has passed: a machine is a part of a process's loop."""
        return [TimePassed()]

    @abstractmethod
    def react(self, event: Event, now: float) -> list[Effect]:
        """Handle an event that the table does not ignore."""

    def obey(self, event: Event, now: float) -> list[Effect]:
        """Let the machine react as far as its table allows; `ProtocolError` if it does not."""
        kind = kind_of(event)
        targets = self.transitions[self.phase, kind]
        if targets is ILLEGAL:
            raise ProtocolError(f"{kind.__name__} while {self.phase.value}: not a transition of the table")
        if not targets:
            return []
        effects = self.react(event, now)
        if self.phase not in targets:
            raise ProtocolError(f"{kind.__name__} led to {self.phase.value}: not a transition of the table")
        return effects


def soonest(*deadlines: float | None) -> float | None:
    """Return the first of several deadlines, or None without any."""
    return min((at for at in deadlines if at is not None), default=None)


@lru_cache
def backoff_s(tries: int, *, first_s: float, most_s: float, seed: str) -> float:
    """Return the seconds to wait after so many attempts, from 1.

    At most `first_s` before the second attempt, twice as long before each later one, and at most `most_s` before any.
    Each is shortened by up to a half, so that a thousand workers whose server comes back do not all call at the same
    instant, again and again (Brooker, "Exponential Backoff and Jitter", 2015). The same seed gives the same delays.
    """
    full = min(most_s, first_s * 2.0 ** min(tries - 1, 60))
    draw = zlib.crc32(f"{seed}/{tries}".encode()) / 2**32
    return full * (1.0 - draw / 2)


def carry_out(
    machine: Machine[Event, Effect],
    happened: Iterable[Event],
    perform: Callable[[Effect], Iterable[Event]],
    now: Callable[[], float],
) -> None:
    """Let a machine handle events, and whatever its effects lead to."""
    pending = deque(happened)
    while pending:
        for effect in machine.handle(pending.popleft(), now()):
            pending.extend(perform(effect))
