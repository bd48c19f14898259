"""What every state machine understands and may ask for, whoever it decides for: events and effects."""

from msgspec import Struct

from lockstep.common.protocol.messages import Message

# Events


class TimePassed(Struct, frozen=True, kw_only=True):
    """The deadline came before anything else did."""


class Interrupted(Struct, frozen=True, kw_only=True):
    """A person or the system wants this process to end now."""


# Effects


class Send(Struct, frozen=True, kw_only=True):
    """Send a peer a message that carries no array."""

    peer: bytes
    message: Message


class Report(Struct, frozen=True, kw_only=True):
    """Print a line for the person at this process."""

    text: str
    #: Whether it repeats, now and then, what the process still waits for.
    is_reminder: bool = False


class ReportRefusal(Struct, frozen=True, kw_only=True):
    """Print that somebody was not admitted, who may try again and again."""

    text: str
