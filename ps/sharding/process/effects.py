"""What a shard's state wants done, as imperatives; the shell does it, in order."""

from dataclasses import dataclass

from common.aggregation.tree import Node
from common.protocol.messages import Leave, Ping, Refused
from common.protocol.shard_messages import ShardJoin, ShardReady, ShardWelcome, SumsAck, Update, WorkerLost
from common.statemachine.vocabulary import Report as Report


@dataclass(frozen=True, kw_only=True, slots=True)
class Tell:
    """Send a message without arrays to the server."""

    message: ShardJoin | ShardReady | SumsAck | WorkerLost | Leave | Ping


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """Make room for the slice; answered by `Prepared` or `PreparationFailed`."""

    welcome: ShardWelcome


@dataclass(frozen=True, kw_only=True, slots=True)
class SendWeights:
    """Send the weights in use to a worker."""

    peer: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class AddFrame:
    """Add the array that came with the event just handled to the tree of a frame."""

    frame: int
    node: Node


@dataclass(frozen=True, kw_only=True, slots=True)
class AddSharedSlice:
    """Add the sums in a worker's slot of shared memory, and be done with that memory."""

    node: Node
    rank: int
    slot: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MapSums:
    """Map the sums of a worker that shares memory."""

    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DropSums:
    """Give back what was mapped of a worker."""

    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SendSquares:
    """Tell the server what the blocks of the mean over `count` samples add to the squared norm."""

    step: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateSlice:
    """Make the update; send the server what it is to be sent of the slice, and then that it is done."""

    update: Update


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusePeer:
    """Tell a peer that nothing more is taken from it."""

    peer: bytes
    refused: Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """End the process with this code; `reason` is empty where all went well."""

    code: int
    reason: str


ShardEffect = (
    Tell
    | Prepare
    | SendWeights
    | AddFrame
    | AddSharedSlice
    | MapSums
    | DropSums
    | SendSquares
    | UpdateSlice
    | RefusePeer
    | Report
    | Exit
)
