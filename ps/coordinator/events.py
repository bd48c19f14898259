"""What can happen to the coordinator, in the past tense."""

from dataclasses import dataclass

from common.aggregation.tree import Node
from common.protocol.messages import ComputeFailed, Diverged, Join, Result
from common.statemachine.events_and_effects import Interrupted as Interrupted
from common.statemachine.events_and_effects import TimePassed as TimePassed


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerJoined:
    peer: bytes
    join: Join


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPrepared:
    """It has the model and the data."""

    peer: bytes
    #: Whether it sees the server's memory, and if not although that was expected, why.
    shares: bool = False
    obstacle: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerAdvanced:
    """The worker is on its way through a lease: some of the sums are there."""

    peer: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultReceived:
    peer: bytes
    result: Result


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseFailed:
    peer: bytes
    failed: ComputeFailed


@dataclass(frozen=True, kw_only=True, slots=True)
class LossDiverged:
    peer: bytes
    diverged: Diverged


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLeft:
    """The worker said so, broke the protocol, or can no longer be reached."""

    peer: bytes
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPinged:
    """A worker without work asked whether the server is there."""

    peer: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusRequested:
    peer: bytes
    #: Numbers of connections that were not let in, and of peers that broke the protocol.
    refused: int = 0
    broken: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CallbacksDecided:
    """Callbacks have run after an epoch."""

    epoch: int
    #: Whether they ended the run with it.
    stops: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ServersReady:
    """All shards are ready."""

    #: Where workers reach them, in the order of their slices.
    addresses: tuple[str, ...]
    #: Whether all see the server's memory, so that workers may share it, and if not, why.
    shares: bool
    obstacle: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsAcknowledged:
    """All shards have their part of the sums of a result."""

    rank: int
    node: Node


@dataclass(frozen=True, kw_only=True, slots=True)
class StepUpdated:
    """All shards have the new weights of their slices."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLost:
    """A shard is gone."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsNotFinite:
    """The weights are not finite, although all losses are."""

    text: str


Event = (
    WorkerJoined
    | WorkerPrepared
    | WorkerAdvanced
    | ResultReceived
    | LeaseFailed
    | LossDiverged
    | WorkerLeft
    | WorkerPinged
    | StatusRequested
    | CallbacksDecided
    | ServersReady
    | SumsAcknowledged
    | StepUpdated
    | ServerLost
    | WeightsNotFinite
    | TimePassed
    | Interrupted
)

#: Events that do not show a worker to be alive.
NOT_A_SIGN_OF_LIFE = (
    TimePassed,
    Interrupted,
    WorkerLeft,
    CallbacksDecided,
    ServersReady,
    SumsAcknowledged,
    StepUpdated,
    ServerLost,
    WeightsNotFinite,
)

#: Events that only a member of the run can cause.
FROM_MEMBERS = WorkerPrepared | ResultReceived | LeaseFailed | LossDiverged | WorkerPinged

#: Events that show a worker to be alive, but no progress with its work.
WITHOUT_PROGRESS = WorkerPinged | StatusRequested
