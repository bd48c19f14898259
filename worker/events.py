"""What can happen to a worker, in the past tense."""

from dataclasses import dataclass

from common.protocol.messages import (
    Eviction,
    Finished,
    Lease,
    Quantity,
    Refused,
    Result,
    SamplesRequest,
    Standby,
    Welcome,
)
from common.statemachine.vocabulary import Interrupted as Interrupted


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The process is up and the address is dialled, which does not mean that anybody is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcomed:
    welcome: Welcome


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinRefused:
    refused: Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Evicted:
    """The server does not know this worker, or no more."""

    fenced: Eviction


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Model and data are there, both as the welcome demanded."""

    #: What was read in the memory that the server offers, and why nothing was, as in `Ready`.
    nonce: str = ""
    obstacle: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparationFailed:
    """Model or data cannot be had, or are not the server's."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ToldToStandBy:
    standby: Standby


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsReceived:
    """They are in their slot."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseReceived:
    lease: Lease


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseComputed:
    """The sums of the lease at hand are in the shell's hands."""

    result: Result


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesLacked:
    """A lease cannot be computed before samples are here: the next of them to be asked for."""

    lease: Lease
    asked: SamplesRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesReceived:
    """Some samples are here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesUnkept:
    """Samples came that cannot be kept."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseDiverged:
    lease: Lease
    piece: int
    layer: str
    quantity: Quantity = "loss"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRaised:
    lease: Lease
    traceback: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerAnswered:
    """The server is there, and has nothing to say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFinished:
    finished: Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolBroken:
    """The server sent what it must not."""

    fault: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TimePassed:
    """The deadline came before anything else did."""

    #: What is in the way of a connection to the server, as far as that is known, and whether it will stay there.
    obstacle: str = ""
    is_hopeless: bool = False


Event = (
    Started
    | Welcomed
    | JoinRefused
    | Evicted
    | Prepared
    | PreparationFailed
    | ToldToStandBy
    | WeightsReceived
    | LeaseReceived
    | SamplesLacked
    | SamplesReceived
    | SamplesUnkept
    | LeaseComputed
    | LeaseDiverged
    | LeaseRaised
    | ServerAnswered
    | RunFinished
    | ProtocolBroken
    | TimePassed
    | Interrupted
)
