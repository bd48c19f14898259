"""From what a run begins with to the server that serves it, alone or with shards."""

from collections.abc import Callable
from dataclasses import dataclass, field

from common.clock import Clock
from common.transport.denials import Denials
from common.transport.port import ServerPort
from ps.coordinator import Coordinator
from ps.keeper import Keeper
from ps.means import Means
from ps.opening import Opening
from ps.recorder import Recorder
from ps.server import Server
from ps.shards import Shards
from ps.sharing import Sharing
from ps.shipping import Shipping


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a server works with, beside the run."""

    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    #: The memory that workers and shards on this machine share, if there is any.
    sharing: Sharing | None = None
    #: Takes the checkpoints, where there is to be any.
    keeper: Keeper | None = None
    #: Connections that were not let in.
    denials: Denials = field(default_factory=Denials)


def server_of(coordinator: Coordinator, opening: Opening, recorder: Recorder, around: Surroundings) -> Server:
    """Return the server of a run, with a slice of the weights or all of them."""
    shards, shard, facts = None, opening.shard, coordinator.facts
    if coordinator.facts.servers > 1:
        samples = len(opening.data.train), len(opening.data.test)
        means = Means(port=around.port, clock=around.clock, say=around.say, sharing=around.sharing, samples=samples)
        shards = Shards(coordinator.facts, opening.shard, means, coordinator.roster)
        shard = shards.own
    return Server(
        coordinator,
        shard,
        recorder,
        around.port,
        around.clock,
        around.say,
        around.sharing,
        around.keeper,
        shards=shards,
        denials=around.denials,
        shipping=None if facts.manifest is None else Shipping(opening.data, facts.manifest),
    )
