"""What a shard's state wants done, as imperatives; the shell does it, in order."""

from dataclasses import dataclass

from common.aggregation.tree import Node
from common.client.events_and_effects import ClientEffect
from common.protocol.messages import Refused
from common.protocol.shard_messages import Update


@dataclass(frozen=True, kw_only=True, slots=True)
class SendSlice:
    """Send the weights of the slice that are in use to a worker."""

    peer: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class AddFrame:
    """Add the array that came with the event just handled to the tree of a frame."""

    frame: int
    node: Node


@dataclass(frozen=True, kw_only=True, slots=True)
class AddSharedSlice:
    """Add the sums in a worker's slot of shared memory; afterwards that memory is not used any more."""

    node: Node
    rank: int
    slot: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MapSums:
    """Map the sums of a worker that shares memory."""

    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UnmapSums:
    """Give back what was mapped of a worker."""

    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SendSquares:
    """Send the server what the blocks of the mean over `count` samples add to the squared norm."""

    step: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateSlice:
    """Make the update; send the server what it collects of the slice, and then that the update is done."""

    update: Update


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusePeer:
    """Tell a peer that nothing more is accepted from it."""

    peer: bytes
    refused: Refused


SliceEffect = SendSlice | AddFrame | AddSharedSlice | MapSums | UnmapSums | SendSquares | UpdateSlice | RefusePeer

ShardEffect = SliceEffect | ClientEffect
