"""What can happen between a server and a process that joins its run, and what that process then does."""

from dataclasses import dataclass

from common.errors import FailureKind
from common.protocol.messages import Finished, Message, Ready, Refused, Welcome
from common.protocol.shard_messages import ShardReady, ShardWelcome
from common.statemachine.events_and_effects import Interrupted, Report, TimePassed

# Events


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The process is up and the server's address is dialled, which does not mean that anybody is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcomed:
    welcome: Welcome | ShardWelcome
    #: The place in the run, for people.
    place: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinRefused:
    refused: Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Evicted:
    """The server does not know this process, or no longer."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Everything that the welcome demands is there."""

    ready: Ready | ShardReady


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparationFailed:
    """Something that the welcome demands cannot be had, or is not the server's."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFinished:
    finished: Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolBroken:
    """The server sent what it must not."""

    fault: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ObstacleFound:
    """Something prevents a connection to the server."""

    obstacle: str
    #: Whether waiting does not help.
    is_final: bool


ClientEvent = (
    Started
    | Welcomed
    | JoinRefused
    | Evicted
    | Prepared
    | PreparationFailed
    | RunFinished
    | ProtocolBroken
    | ObstacleFound
    | TimePassed
    | Interrupted
)

# Effects


@dataclass(frozen=True, kw_only=True, slots=True)
class SendToServer:
    """Send the server a message that carries no array."""

    message: Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """Get what the welcome demands; answered by `Prepared` or `PreparationFailed`."""

    welcome: Welcome | ShardWelcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """End the process with this code; `reason` is empty and `kind` None if all went well."""

    code: int
    reason: str
    kind: FailureKind | None = None


ClientEffect = SendToServer | Prepare | Report | Exit
