"""What can happen to the shards of a run as its server sees them, in the past tense."""

from dataclasses import dataclass

from common.aggregation.tree import Node
from common.protocol.shard_messages import Collected, ShardJoin, SumsAck
from common.statemachine.events_and_effects import TimePassed as TimePassed


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJoined:
    peer: bytes
    join: ShardJoin


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPrepared:
    """It has room for its slice; whether in memory that the server sees, and why not if that was expected."""

    peer: bytes
    shares: bool = False
    obstacle: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPinged:
    """It reported that it is alive."""

    peer: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsAwaited:
    """A worker's result came: all shards are to have its sums before it counts."""

    rank: int
    node: Node


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsConfirmed:
    peer: bytes
    ack: SumsAck


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerRemoved:
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeCompleted:
    """All results of a step count."""

    step: int
    count: int
    is_clipped: bool
    ranks: tuple[int, ...]
    collected: Collected


@dataclass(frozen=True, kw_only=True, slots=True)
class SquaresReceived:
    peer: bytes
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleFound:
    """The factor of clipping, from the squares of all shards."""

    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceUpdated:
    peer: bytes
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardGone:
    """The shard left, broke the protocol, or can no longer be reached."""

    peer: bytes
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnded:
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
    | SliceUpdated
    | ShardGone
    | TimePassed
    | RunEnded
)
