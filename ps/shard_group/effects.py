"""What is to be done about shards, as imperatives; the shell does it, in order."""

from dataclasses import dataclass

from common.aggregation.tree import Node
from common.statemachine.events_and_effects import Report as Report
from common.statemachine.events_and_effects import ReportRefusal as ReportRefusal
from common.statemachine.events_and_effects import Send as Send


@dataclass(frozen=True, kw_only=True, slots=True)
class WelcomeShard:
    """Send a shard its place and the job."""

    peer: bytes
    index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FillShard:
    """Send a shard what its slice begins with: the weights only if it does not share them."""

    peer: bytes
    index: int
    shares: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnounceGroup:
    """All shards are ready: workers may be welcomed."""

    addresses: tuple[str, ...]
    #: Whether all see the server's memory, and why not.
    shares: bool
    obstacle: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmSums:
    """All shards have the sums of a worker's result."""

    rank: int
    node: Node


@dataclass(frozen=True, kw_only=True, slots=True)
class FindScale:
    """Find the factor of clipping: the squares of all shards have come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateOwnSlice:
    """Make the server's own part of the update."""

    step: int
    count: int
    scale: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompleteStep:
    """All slices have their new weights."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LoseShard:
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
