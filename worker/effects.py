"""What a worker's state wants done, as imperatives; the shell does it, in order."""

from msgspec import Struct

from common.client.events_and_effects import ClientEffect
from common.protocol.messages import Lease, Result


class SendResult(Struct, frozen=True, kw_only=True):
    """Send a result with the sums just computed."""

    result: Result


class ComputeLease(Struct, frozen=True, kw_only=True):
    """Compute a lease; answered by `LeaseComputed`, `LeaseDiverged`, `LeaseRaised`, `LeaseStopped` or
    `SamplesMissing`.
    """

    lease: Lease


class IntroduceToShards(Struct, frozen=True, kw_only=True):
    """Send the run's other servers, if there are any, who is behind the connections to them."""


WorkEffect = SendResult | ComputeLease | IntroduceToShards

Effect = WorkEffect | ClientEffect
