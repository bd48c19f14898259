"""What can happen to a shard, in the past tense; what happens between it and the server's run is in `common.client`."""

from dataclasses import dataclass

from common.client.events_and_effects import ClientEvent
from common.protocol.messages import SumsFrame
from common.protocol.shard_messages import AddFromMemory, Admit, Hello, SendWeightsTo, SquaresRequest, Update


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceFilled:
    """The slice is as it was after `steps` updates."""

    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerAdmitted:
    admit: Admit


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerForgotten:
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConnected:
    peer: bytes
    hello: Hello


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsRequested:
    request: SendWeightsTo


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsReceived:
    """Sums came that are frame number `frame` of the slice."""

    peer: bytes
    sums: SumsFrame
    frame: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsShared:
    """The sums of a worker are in its shared memory."""

    add: AddFromMemory


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsMissing:
    """The sums of a worker that shares memory cannot be mapped."""

    rank: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SquaresRequested:
    request: SquaresRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateRequested:
    update: Update


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerFailed:
    """A peer broke the protocol, or can no longer be reached."""

    peer: bytes
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PingReceived:
    """The server asks whether anybody is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerHeard:
    """The server sent something that the shell has carried out."""


SliceEvent = (
    SliceFilled
    | WorkerAdmitted
    | WorkerForgotten
    | WorkerConnected
    | WeightsRequested
    | SumsReceived
    | SumsShared
    | SumsMissing
    | SquaresRequested
    | UpdateRequested
    | PeerFailed
    | PingReceived
    | ServerHeard
)

ShardEvent = SliceEvent | ClientEvent

#: What does not come from the server.
FROM_WORKERS = (WorkerConnected, SumsReceived, PeerFailed)
