"""What a worker's state wants done, as imperatives; the shell does it, in order."""

from msgspec import Struct

from lockstep.common.client.events_and_effects import ClientEffect
from lockstep.common.protocol.messages import Lease, MultiStepLease, Result, SliceLease
from lockstep.worker.multi_step import StepStage


class SendResult(Struct, frozen=True, kw_only=True):
    """Send a result with the sums just computed."""

    result: Result


class ComputeLease(Struct, frozen=True, kw_only=True):
    """Compute a lease; answered by `LeaseComputed`, `LeaseDiverged`, `LeaseRaised`, `LeaseStopped` or
    `SamplesMissing`.
    """

    lease: Lease


class AdvanceSlice(Struct, frozen=True, kw_only=True):
    """Make the next part of a slice of an update; answered by `SliceEnded` after the last."""

    lease: SliceLease


class PrepareSteps(Struct, frozen=True, kw_only=True):
    """Get ready for a multi-step lease."""

    lease: MultiStepLease


class AdvanceStage(Struct, frozen=True, kw_only=True):
    """Do what is to be done in a stage of a step; answered by `StageDone`, `StageNotDone` or `StageFailed`."""

    lease: MultiStepLease
    step: int
    stage: StepStage


class IntroduceToShards(Struct, frozen=True, kw_only=True):
    """Send the run's other servers, if there are any, who is behind the connections to them."""


WorkEffect = SendResult | ComputeLease | AdvanceSlice | PrepareSteps | AdvanceStage | IntroduceToShards

Effect = WorkEffect | ClientEffect
