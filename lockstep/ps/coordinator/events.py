"""What can happen to the coordinator, in the past tense."""

from msgspec import Struct

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import ComputeFailed, Diverged, Dropped, Join, Result
from lockstep.common.statemachine.events_and_effects import Interrupted as Interrupted
from lockstep.common.statemachine.events_and_effects import TimePassed as TimePassed


class WorkerJoined(Struct, frozen=True, kw_only=True):
    peer: bytes
    join: Join


class WorkerPrepared(Struct, frozen=True, kw_only=True):
    """It has the model and the data."""

    peer: bytes
    #: Whether it sees the server's memory, and if not although that was expected, why.
    shares: bool = False
    obstacle: str = ""


class WorkerAdvanced(Struct, frozen=True, kw_only=True):
    """The worker is on its way through a lease: some of the sums are there."""

    peer: bytes


class ResultReceived(Struct, frozen=True, kw_only=True):
    peer: bytes
    result: Result


class LeaseFailed(Struct, frozen=True, kw_only=True):
    peer: bytes
    failed: ComputeFailed


class LossDiverged(Struct, frozen=True, kw_only=True):
    peer: bytes
    diverged: Diverged


class LeaseDropped(Struct, frozen=True, kw_only=True):
    """A worker is past a lease that was withdrawn."""

    peer: bytes
    dropped: Dropped


class WorkerLeft(Struct, frozen=True, kw_only=True):
    """The worker said so, broke the protocol, or can no longer be reached."""

    peer: bytes
    reason: str


class WorkerPinged(Struct, frozen=True, kw_only=True):
    """A worker without work asked whether the server is there."""

    peer: bytes


class StatusRequested(Struct, frozen=True, kw_only=True):
    peer: bytes
    #: Numbers of connections that were not let in, and of peers that broke the protocol.
    refused: int = 0
    broken: int = 0


class CallbacksDecided(Struct, frozen=True, kw_only=True):
    """Callbacks have run after an epoch."""

    epoch: int
    #: Whether they ended the run with it.
    stops: bool


class ServersReady(Struct, frozen=True, kw_only=True):
    """All shards are ready."""

    #: Where workers reach them, in the order of their slices.
    addresses: tuple[str, ...]
    #: Whether all see the server's memory, so that workers may share it, and if not, why.
    shares: bool
    obstacle: str = ""


class SumsAcknowledged(Struct, frozen=True, kw_only=True):
    """All shards have their part of the sums of a result."""

    rank: int
    node: Node


class StepUpdated(Struct, frozen=True, kw_only=True):
    """All shards have the new weights of their slices."""

    step: int


class HalfStep(Struct, frozen=True, kw_only=True):
    """What a worker computed of a step that it made with another."""

    rank: int
    #: As in `Result`.
    loss_sum: float
    correct: int
    count: int
    compute_s: float
    losses: bytes
    #: When it began and ended to compute, in seconds from the begin of the round.
    began_s: float
    ended_s: float


class StepMade(Struct, frozen=True, kw_only=True):
    """Two workers have made a step by themselves."""

    step: int
    #: In the order of the halves.
    halves: tuple[HalfStep, HalfStep]
    #: Seconds from the last sums of the step before to its own, and of its update.
    round_s: float
    update_s: float
    #: Of the weights after it, and the learning rate.
    checksum: int
    rate: float


class MultiStepLeaseEnded(Struct, frozen=True, kw_only=True):
    """The run continues step by step, after so many steps."""

    number: int
    steps: int
    #: Whether that is since a worker was late, or could not go on.
    is_cut: bool
    #: The ranks of the workers that have not answered, which may stand still.
    silent: tuple[int, ...]


class MultiStepLeaseAnswered(Struct, frozen=True, kw_only=True):
    """A worker makes nothing more of a multi-step lease."""

    peer: bytes
    number: int


class MultiStepLeaseRefused(Struct, frozen=True, kw_only=True):
    """Workers cannot make steps by themselves in this run."""


class ServerLost(Struct, frozen=True, kw_only=True):
    """A shard is gone."""

    text: str


class WeightsNotFinite(Struct, frozen=True, kw_only=True):
    """The weights are not finite, although all losses are."""

    text: str


Event = (
    WorkerJoined
    | WorkerPrepared
    | WorkerAdvanced
    | ResultReceived
    | LeaseFailed
    | LossDiverged
    | LeaseDropped
    | WorkerLeft
    | WorkerPinged
    | StatusRequested
    | CallbacksDecided
    | ServersReady
    | SumsAcknowledged
    | StepUpdated
    | StepMade
    | MultiStepLeaseEnded
    | MultiStepLeaseAnswered
    | MultiStepLeaseRefused
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
    StepMade,
    MultiStepLeaseEnded,
    MultiStepLeaseRefused,
    ServerLost,
    WeightsNotFinite,
)

#: Events that only a member of the run can cause.
FROM_MEMBERS = (
    WorkerPrepared | ResultReceived | LeaseFailed | LossDiverged | LeaseDropped | MultiStepLeaseAnswered | WorkerPinged
)

#: Events that show a worker to be alive, but no progress with its work.
WITHOUT_PROGRESS = WorkerPinged | StatusRequested
