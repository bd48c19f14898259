"""What can happen to a shard, in the past tense; what happens between it and the server's run is in `common.client`."""

from msgspec import Struct

from lockstep.common.client.events_and_effects import ClientEvent
from lockstep.common.protocol.messages import SumsFrame
from lockstep.common.protocol.shard_messages import AddFromMemory, Admit, Hello, SendWeightsTo, SquaresRequest, Update


class SliceFilled(Struct, frozen=True, kw_only=True):
    """The slice is as it was after `steps` updates."""

    steps: int


class WorkerAdmitted(Struct, frozen=True, kw_only=True):
    admit: Admit


class WorkerForgotten(Struct, frozen=True, kw_only=True):
    rank: int


class WorkerConnected(Struct, frozen=True, kw_only=True):
    peer: bytes
    hello: Hello


class WeightsRequested(Struct, frozen=True, kw_only=True):
    request: SendWeightsTo


class SumsReceived(Struct, frozen=True, kw_only=True):
    """Sums came that are frame number `frame` of the slice."""

    peer: bytes
    sums: SumsFrame
    frame: int


class SumsShared(Struct, frozen=True, kw_only=True):
    """The sums of a worker are in its shared memory."""

    add: AddFromMemory


class SumsMissing(Struct, frozen=True, kw_only=True):
    """The sums of a worker that shares memory cannot be mapped."""

    rank: int
    reason: str


class SquaresRequested(Struct, frozen=True, kw_only=True):
    request: SquaresRequest


class UpdateRequested(Struct, frozen=True, kw_only=True):
    update: Update


class PeerFailed(Struct, frozen=True, kw_only=True):
    """A peer broke the protocol, or can no longer be reached."""

    peer: bytes
    reason: str


class PingReceived(Struct, frozen=True, kw_only=True):
    """The server asks whether anybody is there."""


class ServerHeard(Struct, frozen=True, kw_only=True):
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
