"""Planted bugs: servers that are careless in one way each, which a simulation has to find."""

from collections.abc import Callable
from dataclasses import replace

import msgspec

from common.aggregation.tree import Node, TreeSum, Vector, VectorTree
from lockstep.simulation.processes import Parts
from ps.checkpoint.resuming import Resumption
from ps.coordinator import events
from ps.coordinator.coordinator import Coordinator
from ps.coordinator.effects import Effect
from ps.coordinator.membership import Membership
from ps.coordinator.scheduling.lease_table import LeaseTable
from ps.run.info import RunInfo
from ps.run.plan import Round
from ps.server.server import Server
from ps.shard.shard import Shard
from ps.shard_group.effects import ConfirmSums, GroupEffect
from ps.shard_group.group import ShardGroup


def coordinating(kind: type[Coordinator]) -> Callable[[RunInfo, Resumption], Coordinator]:
    """Return what makes a coordinator of a kind, as `coordinator_of` does."""

    def make(info: RunInfo, start: Resumption) -> Coordinator:
        return kind(info, membership=Membership(compute_s=start.compute_s), progress=start.progress, start=start.round)

    return make


class Credulous(LeaseTable):
    """Accepts sums of micro-batches that are done."""

    def may_accept(self, node: Node) -> bool:
        return True

    def accept(self, node: Node) -> bool:
        return super().may_accept(node) and super().accept(node)


class CredulousCoordinator(Coordinator):
    """Goes by that book."""

    def _open(self, following: Round) -> None:
        super()._open(following)
        self.state.leases = Credulous(following.micro_batches, single=self.state.audit.chosen)


class Heap(VectorTree):
    """Keeps all sums, even repeated ones, and adds them up once all micro-batches are covered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.heap: list[tuple[Node, Vector]] = []

    def add(self, node: Node, value: Vector) -> bool:
        self.heap.append((node, value.copy()))
        if {m for one, _ in self.heap for m in range(one.lo, one.hi)} == set(range(self.micro_batches)):
            super().add(Node(0, self.micro_batches), self.added())
            self.heap.clear()
        return True

    def added(self) -> Vector:
        """Return the sum in the order of arrival."""
        return sum((values for _, values in self.heap[1:]), self.heap[0][1])


class TwiceOver(Heap):
    """Adds in the right order, and what came twice once more."""

    def added(self) -> Vector:
        tree = TreeSum[Vector](self.micro_batches, lambda left, right: left + right)
        doubled = [values for node, values in self.heap if not tree.add(node, values)]
        return sum(doubled, tree.total())


def with_trees(kind: type[VectorTree]) -> Callable[[Shard], Shard]:
    """Return what puts such trees into a shard."""

    def change(shard: Shard) -> Shard:
        shard.trees = [kind(tree.micro_batches, tree.pool) for tree in shard.trees]
        return shard

    return change


def made_again(info: RunInfo, start: Resumption) -> Coordinator:
    """Make the coordinator of a run that makes the last update of its checkpoint once more."""
    steps = start.progress.steps
    at = info.plan.at(steps - 1, is_evaluated=True) if steps else start.round
    return coordinating(Coordinator)(info, replace(start, round=at or start.round))


class Unfenced(Coordinator):
    """Takes what is late for what is asked."""

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        if isinstance(event, events.ResultReceived) and event.result.work == self.round.work:
            event = replace(event, result=msgspec.structs.replace(event.result, step=self.round.step))
        return super().handle(event, now)


class Hasty(ShardGroup):
    """Does not wait until all shards have what it counts."""

    def _confirm(self, key: tuple[int, Node]) -> list[GroupEffect]:
        if key not in self.awaited:
            return []
        self.awaited.remove(key)
        return [ConfirmSums(rank=key[0], node=key[1])]


def hasty(server: Server) -> Server:
    server.group.state = Hasty(server.group.state.config, step=server.group.state.step)
    return server


#: By what is wrong, the parts in which it is.
PLANTED = {
    "sums are applied twice": Parts(coordinator=coordinating(CredulousCoordinator), shard=with_trees(TwiceOver)),
    "an update is made twice": Parts(coordinator=made_again),
    "what is late is not fenced off": Parts(coordinator=coordinating(Unfenced)),
    "sums are added as they arrive": Parts(shard=with_trees(Heap)),
    "updates do not wait for all shards": Parts(server=hasty),
}
