"""What can happen to the shards of a run as its server sees them, in the past tense."""

from msgspec import Struct

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.shard_messages import Collected, ShardJoin, SumsAck
from lockstep.common.statemachine.events_and_effects import TimePassed as TimePassed


class ShardJoined(Struct, frozen=True, kw_only=True):
    peer: bytes
    join: ShardJoin


class ShardPrepared(Struct, frozen=True, kw_only=True):
    """It has room for its slice; whether in memory that the server sees, and why not if that was expected."""

    peer: bytes
    shares: bool = False
    obstacle: str = ""


class ShardPinged(Struct, frozen=True, kw_only=True):
    """It reported that it is alive."""

    peer: bytes


class SumsAwaited(Struct, frozen=True, kw_only=True):
    """A worker's result came: all shards are to have its sums before it counts."""

    rank: int
    node: Node


class SumsConfirmed(Struct, frozen=True, kw_only=True):
    peer: bytes
    ack: SumsAck


class WorkerRemoved(Struct, frozen=True, kw_only=True):
    rank: int


class TreeCompleted(Struct, frozen=True, kw_only=True):
    """All results of a step count."""

    step: int
    count: int
    is_clipped: bool
    ranks: tuple[int, ...]
    collected: Collected


class SquaresReceived(Struct, frozen=True, kw_only=True):
    peer: bytes
    step: int


class ScaleFound(Struct, frozen=True, kw_only=True):
    """The factor of clipping, from the squares of all shards."""

    scale: float


class OwnSliceUpdated(Struct, frozen=True, kw_only=True):
    """The server's own slice has its new weights."""

    step: int


class SliceUpdated(Struct, frozen=True, kw_only=True):
    peer: bytes
    step: int


class ShardGone(Struct, frozen=True, kw_only=True):
    """The shard left, broke the protocol, or can no longer be reached."""

    peer: bytes
    reason: str


class RunEnded(Struct, frozen=True, kw_only=True):
    """`reason` is empty if it ended well."""

    reason: str


GroupEvent = (
    ShardJoined
    | ShardPrepared
    | ShardPinged
    | SumsAwaited
    | SumsConfirmed
    | WorkerRemoved
    | TreeCompleted
    | SquaresReceived
    | ScaleFound
    | OwnSliceUpdated
    | SliceUpdated
    | ShardGone
    | TimePassed
    | RunEnded
)
