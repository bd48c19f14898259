"""What a shard's state wants done, as imperatives; the shell does it, in order."""

from msgspec import Struct

from lockstep.common.aggregation.tree import Node
from lockstep.common.client.events_and_effects import ClientEffect
from lockstep.common.protocol.messages import Refused
from lockstep.common.protocol.shard_messages import Update


class SendSlice(Struct, frozen=True, kw_only=True):
    """Send the weights of the slice that are in use to a worker."""

    peer: bytes


class AddFrame(Struct, frozen=True, kw_only=True):
    """Add the array that came with the event just handled to the tree of a frame."""

    frame: int
    node: Node


class AddSharedSlice(Struct, frozen=True, kw_only=True):
    """Add the sums in a worker's slot of shared memory; afterwards that memory is not used any more."""

    node: Node
    rank: int
    slot: int


class MapSums(Struct, frozen=True, kw_only=True):
    """Map the sums of a worker that shares memory."""

    rank: int


class UnmapSums(Struct, frozen=True, kw_only=True):
    """Give back what was mapped of a worker."""

    rank: int


class SendSquares(Struct, frozen=True, kw_only=True):
    """Send the server what the blocks of the mean over `count` samples add to the squared norm."""

    step: int
    count: int


class UpdateSlice(Struct, frozen=True, kw_only=True):
    """Make the update; send the server what it collects of the slice, and then that the update is done."""

    update: Update


class RefusePeer(Struct, frozen=True, kw_only=True):
    """Tell a peer that nothing more is accepted from it."""

    peer: bytes
    refused: Refused


SliceEffect = SendSlice | AddFrame | AddSharedSlice | MapSums | UnmapSums | SendSquares | UpdateSlice | RefusePeer

ShardEffect = SliceEffect | ClientEffect
