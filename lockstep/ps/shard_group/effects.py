"""What is to be done about shards, as imperatives; the shell does it, in order."""

from msgspec import Struct

from lockstep.common.aggregation.tree import Node
from lockstep.common.statemachine.events_and_effects import Report as Report
from lockstep.common.statemachine.events_and_effects import ReportRefusal as ReportRefusal
from lockstep.common.statemachine.events_and_effects import Send as Send


class WelcomeShard(Struct, frozen=True, kw_only=True):
    """Send a shard its place and the job."""

    peer: bytes
    index: int


class FillShard(Struct, frozen=True, kw_only=True):
    """Send a shard what its slice begins with: the weights only if it does not share them."""

    peer: bytes
    index: int
    shares: bool


class AnnounceGroup(Struct, frozen=True, kw_only=True):
    """All shards are ready: workers may be welcomed."""

    addresses: tuple[str, ...]
    #: Whether all see the server's memory, and why not.
    shares: bool
    obstacle: str


class ConfirmSums(Struct, frozen=True, kw_only=True):
    """All shards have the sums of a worker's result."""

    rank: int
    node: Node


class FindScale(Struct, frozen=True, kw_only=True):
    """Find the factor of clipping: the squares of all shards have come."""


class UpdateOwnSlice(Struct, frozen=True, kw_only=True):
    """Make the server's own part of the update; answered by `OwnSliceUpdated`, perhaps later."""

    step: int
    count: int
    scale: float | None


class CompleteStep(Struct, frozen=True, kw_only=True):
    """All slices have their new weights."""

    step: int


class LoseShard(Struct, frozen=True, kw_only=True):
    """A shard is gone without which the run cannot go on."""

    text: str


GroupEffect = (
    Send
    | WelcomeShard
    | FillShard
    | AnnounceGroup
    | ConfirmSums
    | FindScale
    | UpdateOwnSlice
    | CompleteStep
    | LoseShard
    | Report
    | ReportRefusal
)
