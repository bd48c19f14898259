"""The events that the coordinator handles, in the past tense."""

from msgspec import Struct

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind
from lockstep.common.protocol.messages import (
    ComputeFailed,
    Diverged,
    Dropped,
    Ping,
    Ready,
    Result,
    SamplesRequest,
    ShardStatus,
    SumsFrame,
)
from lockstep.common.statemachine.machine import PeerLeft as PeerLeft
from lockstep.common.statemachine.machine import Received as Received
from lockstep.common.statemachine.machine import TimePassed as TimePassed


class ServersReady(Struct, frozen=True, kw_only=True):
    """All shards are ready."""

    #: Their addresses for workers and their hosts, in the order of their slices.
    shards: tuple[ShardStatus, ...]


class SumsAcknowledged(Struct, frozen=True, kw_only=True):
    """All shards have their part of the sums of a worker's result, which may not have come yet."""

    rank: int
    node: Node


class StepUpdated(Struct, frozen=True, kw_only=True):
    """All shards have the new weights of their slices."""

    step: int


class PartFailed(Struct, frozen=True, kw_only=True):
    """This part of the run has failed: a shard is lost, weights are not finite, or a person ends it."""

    text: str
    kind: FailureKind


Event = Received | PeerLeft | ServersReady | SumsAcknowledged | StepUpdated | PartFailed | TimePassed

#: Messages that only a member of the run can send.
FROM_MEMBERS = Ready | Result | ComputeFailed | Diverged | Dropped | Ping

#: Messages that show that a worker makes progress with its leases.
PROGRESS = SumsFrame | SamplesRequest | Result
