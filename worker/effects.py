"""What a worker's state wants done, as imperatives; the shell does it, in order."""

from dataclasses import dataclass

from common.client.events_and_effects import ClientEffect
from common.protocol.messages import Lease, Result


@dataclass(frozen=True, kw_only=True, slots=True)
class SendResult:
    """Send a result with the sums just computed."""

    result: Result


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeLease:
    """Compute a lease; answered by `LeaseComputed`, `LeaseDiverged`, `LeaseRaised` or `SamplesMissing`."""

    lease: Lease


@dataclass(frozen=True, kw_only=True, slots=True)
class IntroduceToShards:
    """Send the run's other servers, if there are any, who is behind the connections to them."""


WorkEffect = SendResult | ComputeLease | IntroduceToShards

Effect = WorkEffect | ClientEffect
