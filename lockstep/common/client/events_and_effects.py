"""What can happen between a server and a process that joins its run, and what that process then does."""

from msgspec import Struct

from lockstep.common.errors import FailureKind
from lockstep.common.protocol.messages import Finished, Message, Ready, Refused, Welcome
from lockstep.common.protocol.shard_messages import ShardReady, ShardWelcome
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.statemachine.events_and_effects import Interrupted, Report, TimePassed

# Events


class Started(Struct, frozen=True, kw_only=True):
    """The process is up and the server's address is dialled, which does not mean that anybody is there."""


class Welcomed(Struct, frozen=True, kw_only=True):
    welcome: Welcome | ShardWelcome
    #: The place in the run, for people.
    place: str


class JoinRefused(Struct, frozen=True, kw_only=True):
    refused: Refused


class Evicted(Struct, frozen=True, kw_only=True):
    """The server does not know this process, or no longer."""

    reason: str


class Prepared(Struct, frozen=True, kw_only=True):
    """Everything that the welcome demands is there."""

    ready: Ready | ShardReady


class PreparationFailed(Struct, frozen=True, kw_only=True):
    """Something that the welcome demands cannot be had, or is not the server's."""

    reason: str


class RunFinished(Struct, frozen=True, kw_only=True):
    finished: Finished


class ProtocolBroken(Struct, frozen=True, kw_only=True):
    """The server sent what it must not."""

    fault: str


class ObstacleFound(Struct, frozen=True, kw_only=True):
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


class SendToServer(Struct, frozen=True, kw_only=True):
    """Send the server a message that carries no array."""

    message: Message


class Prepare(Struct, frozen=True, kw_only=True):
    """Get what the welcome demands; answered by `Prepared` or `PreparationFailed`."""

    welcome: Welcome | ShardWelcome


class Exit(Struct, frozen=True, kw_only=True):
    """End the process with this code; `reason` is empty and `kind` None if all went well."""

    code: int
    reason: str
    kind: FailureKind | None = None
    #: The numerics with which the server would have let the process in, None if others are no reason.
    numerics: Numerics | None = None


ClientEffect = SendToServer | Prepare | Report | Exit
