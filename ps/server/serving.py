"""From what a run begins with to the server that serves it, alone or with shards."""

from collections.abc import Callable
from dataclasses import dataclass, field

from common.runtime.clock import Clock
from common.transport.limits.rejection_log import RejectionLog
from common.transport.port import ServerPort
from ps.checkpoint.checkpointer import Checkpointer
from ps.coordinator.coordinator import Coordinator
from ps.records.metrics import MetricsRecorder
from ps.server.samples import SampleSender
from ps.server.server import Server
from ps.setup import RunSetup
from ps.sharding.group.means import Means
from ps.sharding.group.shell import ShardGroupShell
from ps.shared_memory import ServerSharedMemory


@dataclass(frozen=True, kw_only=True)
class ServerEnvironment:
    """What a server works with, beside the run."""

    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    #: The memory that workers and shards on this machine share, if there is any.
    sharing: ServerSharedMemory | None = None
    #: Takes the checkpoints, where there is to be any.
    keeper: Checkpointer | None = None
    #: Connections that were not let in.
    denials: RejectionLog = field(default_factory=RejectionLog)


def server_of(
    coordinator: Coordinator, opening: RunSetup, recorder: MetricsRecorder, around: ServerEnvironment
) -> Server:
    """Return the server of a run, with a slice of the weights or all of them."""
    shards, shard, facts = None, opening.shard, coordinator.facts
    if coordinator.facts.servers > 1:
        samples = len(opening.data.train), len(opening.data.test)
        means = Means(port=around.port, clock=around.clock, say=around.say, sharing=around.sharing, samples=samples)
        shards = ShardGroupShell(coordinator.facts, opening.shard, means, coordinator.roster)
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
        shipping=None if facts.manifest is None else SampleSender(opening.data, facts.manifest),
    )
