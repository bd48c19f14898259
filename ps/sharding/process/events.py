"""What can happen to a shard, in the past tense."""

from dataclasses import dataclass

from common.protocol.messages import Eviction, Finished, Refused, SumsFrame
from common.protocol.shard_messages import (
    AddFromMemory,
    Admit,
    Hello,
    SendWeightsTo,
    ShardWelcome,
    SquaresRequest,
    Update,
)
from common.statemachine.vocabulary import Interrupted as Interrupted


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The process is up and the server's address is dialled, which does not mean that anybody is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcomed:
    welcome: ShardWelcome


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinRefused:
    refused: Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Evicted:
    """The server does not know this shard, or no more."""

    fenced: Eviction


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """There is room for the slice; what was read in the server's memory, or why nothing was, as in `ShardReady`."""

    frames: int
    micro_batches: int
    nonce: str = ""
    obstacle: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparationFailed:
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """All of the state is there: that after `steps` updates."""

    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerAdmitted:
    admit: Admit


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerForgotten:
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerGreeted:
    peer: bytes
    hello: Hello


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsWanted:
    serve: SendWeightsTo


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsFrameReceived:
    """A frame of sums came, which is frame number `frame` of the slice."""

    peer: bytes
    part: SumsFrame
    frame: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsShared:
    add: AddFromMemory


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsMissing:
    """The sums of a worker that shares memory cannot be mapped."""

    rank: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SquaresWanted:
    asked: SquaresRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateWanted:
    update: Update


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerFailed:
    """A peer broke the protocol, or can no longer be reached."""

    peer: bytes
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerAsked:
    """The server wants to know whether anybody is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerHeard:
    """The server said something that the shell has seen to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFinished:
    finished: Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolBroken:
    """The server sent what it must not."""

    fault: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TimePassed:
    """The deadline came before anything else did."""

    #: What is in the way of a connection to the server, as far as that is known, and whether it will stay there.
    obstacle: str = ""
    is_hopeless: bool = False


ShardEvent = (
    Started
    | Welcomed
    | JoinRefused
    | Evicted
    | Prepared
    | PreparationFailed
    | Begun
    | WorkerAdmitted
    | WorkerForgotten
    | WorkerGreeted
    | WeightsWanted
    | SumsFrameReceived
    | SumsShared
    | SumsMissing
    | SquaresWanted
    | UpdateWanted
    | PeerFailed
    | ServerAsked
    | ServerHeard
    | RunFinished
    | ProtocolBroken
    | TimePassed
    | Interrupted
)
