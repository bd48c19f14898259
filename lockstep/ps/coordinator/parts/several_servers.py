"""The other servers of a run, each with a slice of the weights: they are ready first, and acknowledge sums. Pure."""

from msgspec.structs import replace

from lockstep.common.protocol.messages import ShardStatus
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect
from lockstep.ps.coordinator.transitions import RunPhase


class SeveralServers:
    """Waits for all servers at the beginning, and for their acknowledgements of each result."""

    def __init__(self, core: Coordinator) -> None:
        self._core = core
        self._shards = list[ShardStatus]()
        if core.info.options.servers > 1:
            core.phase = RunPhase.AWAITING_SERVERS
        hooks = core.hooks
        hooks.statuses.append(lambda status: replace(status, shards=self._shards))
        hooks.events[events.ServersReady] = self._on_ready
        hooks.events[events.SumsAcknowledged] = self._on_sums_acknowledged

    def _on_ready(self, event: events.ServersReady, now: float) -> list[Effect]:
        core = self._core
        core.phase = RunPhase.AWAITING_WORKERS
        self._shards = [*event.shards]
        early = core.admission.open(tuple(shard.address for shard in event.shards))
        return [effect for joining in early for effect in core.join(joining, now)]

    def _on_sums_acknowledged(self, event: events.SumsAcknowledged, now: float) -> list[Effect]:
        """Count a result of which all servers have the sums, unless another worker was faster."""
        core = self._core
        member, result = core.membership.by_rank(event.rank), core.state.pending.acknowledge(event.rank, event.node)
        if member is None or result is None:
            return []
        if core.state.is_needed(result):
            return core.accept(member, result, now)
        core.state.refuse(member, result)
        return core.assign_leases(now)
