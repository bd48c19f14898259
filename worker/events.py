"""What can happen to a worker, in the past tense; what happens between it and the server is in `common.client`."""

from dataclasses import dataclass

from common.client.events_and_effects import ClientEvent
from common.protocol.messages import Lease, Quantity, Result, SamplesRequest, Standby


@dataclass(frozen=True, kw_only=True, slots=True)
class StandbyRequested:
    standby: Standby


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsReceived:
    """All weights of a step are in their slot."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseReceived:
    lease: Lease


@dataclass(frozen=True, kw_only=True, slots=True)
class InboxEmptied:
    """No message is waiting: if there is work, it is time to compute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseComputed:
    """The sums of the lease at hand are in the shell's hands."""

    result: Result


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseDiverged:
    lease: Lease
    #: The micro-batch, or the chunk of an evaluation.
    micro_batch: int
    layer: str
    quantity: Quantity = "loss"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRaised:
    lease: Lease
    traceback: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesMissing:
    """A lease cannot be computed yet: samples are missing, of which these are to be requested next."""

    lease: Lease
    request: SamplesRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesReceived:
    """Some samples are here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesNotStored:
    """Samples came that cannot be stored."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerPinged:
    """The server is there, and has nothing else to send."""


WorkEvent = (
    StandbyRequested
    | WeightsReceived
    | LeaseReceived
    | InboxEmptied
    | LeaseComputed
    | LeaseDiverged
    | LeaseRaised
    | SamplesMissing
    | SamplesReceived
    | SamplesNotStored
    | ServerPinged
)

Event = WorkEvent | ClientEvent
