"""The events that the coordinator handles, in the past tense."""

from msgspec import Struct

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import (
    ComputeFailed,
    Diverged,
    Dropped,
    LeaseKey,
    MultiStepResult,
    Ping,
    Ready,
    Result,
    SamplesRequest,
    ShardStatus,
    StandbyAddress,
    SumsFrame,
)
from lockstep.common.statemachine.machine import Interrupted as Interrupted
from lockstep.common.statemachine.machine import PeerLeft as PeerLeft
from lockstep.common.statemachine.machine import Received as Received
from lockstep.common.statemachine.machine import TimePassed as TimePassed
from lockstep.ps.coordinator.findings import MicroBatchOutcome


class ServersReady(Struct, frozen=True, kw_only=True):
    """All shards are ready."""

    #: Their addresses for workers and their hosts, in the order of their slices.
    shards: tuple[ShardStatus, ...]


class StandbysKnown(Struct, frozen=True, kw_only=True):
    """These are the standbys of the run from now on."""

    standbys: tuple[StandbyAddress, ...]


class ServersAvailable(Struct, frozen=True, kw_only=True):
    """So many servers are there, those included that have no slice."""

    servers: int


class DrainRequested(Struct, frozen=True, kw_only=True):
    """This part of the run is to end after a step: another server continues it, or this one with other servers."""

    reason: str
    kind: FailureKind
    #: The number of servers that continue it; 0 if that is for another server to know.
    servers: int = 0


class SumsAcknowledged(Struct, frozen=True, kw_only=True):
    """All shards have their part of the sums of a worker's result, which may not have come yet."""

    rank: int
    node: Node


class StepUpdated(Struct, frozen=True, kw_only=True):
    """All shards have the new weights of their slices."""

    step: int


class PartMade(Struct, frozen=True, kw_only=True):
    """The share of one process in a step that its team has made by itself."""

    node: Node
    process: int
    #: When it began and ended, in seconds from the begin of the round, and the seconds of computing.
    began_s: float
    ended_s: float
    compute_s: float


class StepMade(Struct, frozen=True, kw_only=True):
    """A team has made a step by itself."""

    step: int
    #: The team's.
    rank: int
    tally: Tally
    #: Of all micro-batches, as in `Result`.
    losses: bytes
    #: The shares of its processes.
    parts: tuple[PartMade, ...]
    #: Seconds from the last sums of the step before to its own, and of its update.
    round_s: float
    update_s: float
    #: Of the weights after it, and the learning rate.
    checksum: int
    rate: float

    def compute_s(self) -> tuple[float, float]:
        """Return the seconds of computing that went into it, of all processes and the most of any."""
        seconds: dict[int, float] = {}
        for part in self.parts:
            seconds[part.process] = seconds.get(part.process, 0.0) + part.compute_s
        return sum(seconds.values()), max(seconds.values(), default=0.0)


class MultiStepLeaseEnded(Struct, frozen=True, kw_only=True):
    """The run continues step by step, after so many steps."""

    #: The lease that ends, None if it was not sent.
    lease: LeaseKey | None
    steps: int
    #: Whether that is since a worker was late, or could not go on.
    is_cut: bool
    #: Whether the team has not answered: it may stand still.
    is_silent: bool
    #: Whether there may be another one: otherwise no team can make steps by itself in this run.
    may_follow: bool = True


class Recomputed(Struct, frozen=True, kw_only=True):
    """The server has computed a micro-batch itself, or cannot."""

    step: int
    micro_batch: int
    found: MicroBatchOutcome | None = None


class PartFailed(Struct, frozen=True, kw_only=True):
    """This part of the run has failed: a shard or the lead is lost, weights are not finite, or a lease raised twice."""

    text: str
    kind: FailureKind


class RoomChanged(Struct, frozen=True, kw_only=True):
    """The disk has no room for the run's records, or has some again."""

    #: A text that names the lack, empty if there is room.
    missing: str


Event = (
    Received
    | PeerLeft
    | ServersReady
    | StandbysKnown
    | ServersAvailable
    | DrainRequested
    | SumsAcknowledged
    | StepUpdated
    | StepMade
    | MultiStepLeaseEnded
    | Recomputed
    | PartFailed
    | RoomChanged
    | TimePassed
    | Interrupted
)

#: Messages that only a member of the run can send.
FROM_MEMBERS = Ready | Result | ComputeFailed | Diverged | Dropped | MultiStepResult | Ping

#: Messages that show that a worker makes progress with its leases.
PROGRESS = SumsFrame | SamplesRequest | Result
