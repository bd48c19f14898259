"""What every state machine understands and may ask for, whoever it decides for: events and effects."""

from dataclasses import dataclass

from common.protocol.messages import Message

# Events


@dataclass(frozen=True, kw_only=True, slots=True)
class TimePassed:
    """The deadline came before anything else did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interrupted:
    """A person or the system wants this process to end now."""


# Effects


@dataclass(frozen=True, kw_only=True, slots=True)
class Send:
    """Send a peer a message that carries no array."""

    peer: bytes
    message: Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Print a line for the person at this process."""

    text: str
    #: Whether it repeats, now and then, what the process still waits for.
    is_reminder: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRefusal:
    """Print that somebody was not admitted, who may try again and again."""

    text: str
