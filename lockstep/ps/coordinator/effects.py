"""The effects of the coordinator, as imperatives; the shell carries them out, in order."""

from msgspec import Struct

from lockstep.common.errors import CONTINUED, FailureKind
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import EpochRecord, Finished, shortened
from lockstep.common.statemachine.machine import Report as Report
from lockstep.common.statemachine.machine import Send as Send
from lockstep.ps.coordinator.findings import Conviction
from lockstep.ps.records.ledger import Account


class ForgetWorker(Struct, frozen=True, kw_only=True):
    """A worker is gone: release all that is kept for it."""

    rank: int


class UpdateWeights(Struct, frozen=True, kw_only=True):
    """The tree is whole: make one step of the optimizer with the mean over `tally.divisor` targets."""

    step: int
    tally: Tally
    account: Account


class RecordEpoch(Struct, frozen=True, kw_only=True):
    """Record an epoch's figures, with the digest of the weights as they are now."""

    epoch: EpochRecord
    account: Account


class Finish(Struct, frozen=True, kw_only=True):
    """The run is over; `failure` is the message for people, empty if it succeeded."""

    failure: str = ""
    #: Why it failed, None if it succeeded. If it diverged, the weights before the last update are kept.
    kind: FailureKind | None = None
    #: The workers that have computed wrongly, if that is the reason.
    conviction: Conviction | None = None

    def farewell(self) -> Finished | None:
        """Return what workers and shards are sent then, None if the run continues and they find that out."""
        return None if self.kind in CONTINUED else Finished(reason=shortened(self.failure), kind=self.kind)


Effect = Send | ForgetWorker | UpdateWeights | RecordEpoch | Report | Finish
