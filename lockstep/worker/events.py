"""What can happen to a worker, in the past tense; what happens between it and the server is in `common.client`."""

from msgspec import Struct

from lockstep.common.client.events_and_effects import ClientEvent
from lockstep.common.protocol.messages import (
    Lease,
    MultiStepLease,
    Quantity,
    Result,
    SamplesRequest,
    SliceLease,
    SliceResult,
    Standby,
    Withdrawal,
)


class StandbyRequested(Struct, frozen=True, kw_only=True):
    standby: Standby


class WeightsReceived(Struct, frozen=True, kw_only=True):
    """All weights of a step are in their slot."""

    step: int


class LeaseReceived(Struct, frozen=True, kw_only=True):
    lease: Lease


class LeaseWithdrawn(Struct, frozen=True, kw_only=True):
    """Somebody else was faster with a lease."""

    withdrawal: Withdrawal


class LeaseStopped(Struct, frozen=True, kw_only=True):
    """The lease at hand was given up, since it is withdrawn, after some of its micro-batches were computed."""

    lease: Lease
    computed: int


class SliceLeaseReceived(Struct, frozen=True, kw_only=True):
    lease: SliceLease


class PartDue(Struct, frozen=True, kw_only=True):
    """It is time to make the next part of the slice at hand; between two parts, a process can be interrupted."""


class SliceEnded(Struct, frozen=True, kw_only=True):
    """The slice at hand is made, or will not be."""

    result: SliceResult


class MemoryLost(Struct, frozen=True, kw_only=True):
    """The memory that a lease names cannot be mapped."""

    reason: str


class InboxEmptied(Struct, frozen=True, kw_only=True):
    """No message is waiting: if there is work, it is time to compute."""


class LeaseComputed(Struct, frozen=True, kw_only=True):
    """The sums of the lease at hand are in the shell's hands."""

    result: Result


class LeaseDiverged(Struct, frozen=True, kw_only=True):
    lease: Lease
    #: The micro-batch, or the chunk of an evaluation.
    micro_batch: int
    layer: str
    quantity: Quantity = "loss"


class LeaseRaised(Struct, frozen=True, kw_only=True):
    lease: Lease
    traceback: str


class SamplesMissing(Struct, frozen=True, kw_only=True):
    """A lease cannot be computed yet: samples are missing, of which these are to be requested next."""

    lease: Lease
    request: SamplesRequest


class SamplesReceived(Struct, frozen=True, kw_only=True):
    """Some samples are here."""


class SamplesNotStored(Struct, frozen=True, kw_only=True):
    """Samples came that cannot be stored."""

    reason: str


class MultiStepLeaseReceived(Struct, frozen=True, kw_only=True):
    """Steps are to be made with another worker."""

    lease: MultiStepLease


class MultiStepWithdrawn(Struct, frozen=True, kw_only=True):
    """The server goes on step by step."""

    number: int


class StageDue(Struct, frozen=True, kw_only=True):
    """It is time to do something for the multi-step lease at hand."""


class StageDone(Struct, frozen=True, kw_only=True):
    """A stage of a step of the multi-step lease is done."""


class StageNotDone(Struct, frozen=True, kw_only=True):
    """It is not done yet: what it waits for is not there, or the slice has further parts."""


class StageFailed(Struct, frozen=True, kw_only=True):
    """Something in the multi-step lease did not go as it should."""


class ServerPinged(Struct, frozen=True, kw_only=True):
    """The server is there, and has nothing else to send."""


WorkEvent = (
    StandbyRequested
    | WeightsReceived
    | LeaseReceived
    | LeaseWithdrawn
    | LeaseStopped
    | SliceLeaseReceived
    | PartDue
    | SliceEnded
    | MemoryLost
    | InboxEmptied
    | LeaseComputed
    | LeaseDiverged
    | LeaseRaised
    | SamplesMissing
    | SamplesReceived
    | SamplesNotStored
    | MultiStepLeaseReceived
    | MultiStepWithdrawn
    | StageDue
    | StageDone
    | StageNotDone
    | StageFailed
    | ServerPinged
)

Event = WorkEvent | ClientEvent
