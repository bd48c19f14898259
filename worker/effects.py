"""What a worker's state wants done, as imperatives; the shell does it, in order."""

from dataclasses import dataclass

from common.protocol.messages import Lease, Result, Welcome, WorkerMessage
from common.statemachine.vocabulary import Report as Report


@dataclass(frozen=True, kw_only=True, slots=True)
class Send:
    """Send a message that carries no array."""

    message: WorkerMessage


@dataclass(frozen=True, kw_only=True, slots=True)
class SendResult:
    """Send a result with the sums just computed."""

    result: Result


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """Build the model and load the data; answered by `Prepared` or `PreparationFailed`."""

    welcome: Welcome


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeLease:
    """Compute a lease; answered by `PieceComputed`, `PieceDiverged` or `PieceRaised`."""

    lease: Lease


@dataclass(frozen=True, kw_only=True, slots=True)
class Greet:
    """Tell the run's other servers, where there are any, who is behind the connections to them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """End the process with this code; `reason` is empty where all went well."""

    code: int
    reason: str


Effect = Send | SendResult | Prepare | Greet | ComputeLease | Report | Exit
