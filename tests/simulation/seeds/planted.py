"""Planted bugs: servers that are careless in one way each, which a simulation has to find."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node, TreeSum, Vector, VectorTree
from lockstep.common.errors import FailureKind
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import Result
from lockstep.common.statemachine.machine import Received
from lockstep.launch.supervision.restarts import ProcessTable
from lockstep.launch.supervision.supervisor import RunSupervisor
from lockstep.ps.checkpoint.resuming import Resumption
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect, Finish
from lockstep.ps.coordinator.parts.assembly import all_parts
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable
from lockstep.ps.coordinator.scheduling.round_state import PendingAcknowledgements
from lockstep.ps.records.receipt import Receipt, receipt_of
from lockstep.ps.records.recorder import MetricsRecorder
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round
from lockstep.ps.run.progress import NOTHING, Moved, StepTime
from lockstep.ps.server.server import Server
from lockstep.ps.server.shared_memory import ServerSharedMemory
from lockstep.ps.shard.shard import Shard
from tests.simulation.simulator.oracle import simulate
from tests.simulation.simulator.processes import Parts
from tests.simulation.simulator.scenario import scenario_of


def coordinating(kind: type[Coordinator]) -> Callable[[RunInfo, Resumption], Coordinator]:
    """Return what makes a coordinator of a kind, as `coordinator_of` does."""

    def make(info: RunInfo, start: Resumption) -> Coordinator:
        return kind(info, all_parts(first_steps=0), progress=start.progress, start=start.round)

    return make


class Credulous(LeaseTable):
    """Accepts sums of micro-batches that are done."""

    def may_accept(self, node: Node) -> bool:
        return True

    def accept(self, node: Node) -> list[HeldLease] | None:
        return super().accept(node) if super().may_accept(node) else None


class CredulousCoordinator(Coordinator):
    """Goes by that book."""

    def open_round(self, following: Round) -> None:
        super().open_round(following)
        self.state.leases = Credulous(following.micro_batches, single=self.state.single, numbers=self.scheduler.numbers)


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


class AllOrNothing(VectorTree):
    """Refuses a node if it has any part of it, as if it had all of it."""

    def add(self, node: Node, value: Vector) -> bool:
        if any(self.tree.covers(Node(one, one + 1)) for one in range(node.lo, node.hi)):
            return False
        return super().add(node, value)


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
        if isinstance(event, Received) and isinstance(event.message, Result) and event.message.work == self.round.work:
            late = msgspec.structs.replace(event.message, step=self.round.step)
            event = Received(peer=event.peer, message=late)
        return super().handle(event, now)


class Hasty(PendingAcknowledgements):
    """Does not wait until all shards have what it counts."""

    def has_sums(self, rank: int, node: Node) -> bool:
        return True


class HastyCoordinator(Coordinator):
    """Goes by that book."""

    def open_round(self, following: Round) -> None:
        super().open_round(following)
        self.state.pending = Hasty()


class MisreportingRecorder(MetricsRecorder):
    """Records another learning rate than that of the step."""

    def step(
        self, step: int, tally: Tally, rate: float, update_s: float, time: StepTime, moved: Moved = NOTHING
    ) -> None:
        super().step(step, tally, 2 * rate, update_s, time, moved)


class ForgetfulRecorder(MetricsRecorder):
    """Keeps a receipt without the last epoch."""

    def receipt(self) -> Receipt:
        return receipt_of(self.info, self.chain[:-1])


def recording(kind: type[MetricsRecorder]) -> Callable[[Server], Server]:
    """Return what lets a server record with another recorder, which takes over what there is."""

    def change(server: Server) -> Server:
        server.recorder.__class__ = kind
        return server

    return change


class Untidy(ServerSharedMemory):
    """Leaves the folder of shared memory behind."""

    def close(self) -> None:
        for lock in self.locks:
            lock.close()


def untidy(server: Server) -> Server:
    if server.workers.sharing is not None:
        server.workers.sharing.__class__ = Untidy
    return server


class Ungrateful(Coordinator):
    """Tells the workers of a run that succeeded that it failed."""

    def dismiss(self, ended: Finish) -> list[Effect]:
        return super().dismiss(replace(ended, failure="nobody is needed", kind=FailureKind.REFUSED))


class Lonely(RunSupervisor):
    """Restarts a server without its shards."""

    def on_listening(self, now: float, *, is_elsewhere: bool) -> None:
        self.is_served = True
        if is_elsewhere:
            super().on_listening(now, is_elsewhere=True)


class Impatient(RunSupervisor):
    """Restarts no process that was killed before the run has got further."""

    def __post_init__(self) -> None:
        self.places = ProcessTable(0)


class Planted(NamedTuple):
    """A bug, and what a violation says that it leads to."""

    parts: Parts
    says: str
    #: A seed that finds it, where the search begins: what is rare would take long to find from 0 on.
    first: int = 0

    def found_by(self, seeds: range) -> int | None:
        """Return the first of some seeds that finds the bug as what it is, None if no seed does."""
        for seed in seeds:
            found = simulate(scenario_of(seed), self.parts).violations
            if any(self.says in violation for violation in found):
                return seed
        return None


OTHER_WEIGHTS = "the weights after step"
OTHER_LOSSES = " has other losses than in one process"

#: By what is wrong.
PLANTED = {
    "sums are applied twice": Planted(
        Parts(coordinator=coordinating(CredulousCoordinator), shard=with_trees(TwiceOver)), OTHER_WEIGHTS, first=31
    ),
    "an update is made twice": Planted(Parts(coordinator=made_again), "ValueError: negative shift count", first=16),
    # The server adds up what it does not have.
    "what is late is not fenced off": Planted(Parts(coordinator=coordinating(Unfenced)), "KeyError: Node(", first=259),
    "sums are added as they arrive": Planted(Parts(shard=with_trees(Heap)), OTHER_WEIGHTS, first=13),
    "sums are refused of which a part is there": Planted(
        Parts(shard=with_trees(AllOrNothing)), OTHER_WEIGHTS, first=31
    ),
    "updates do not wait for all shards": Planted(
        Parts(coordinator=coordinating(HastyCoordinator)), "reports: the server broke the protocol: step ", first=80
    ),
    "another learning rate is recorded": Planted(Parts(server=recording(MisreportingRecorder)), ": lr = "),
    "the receipt lacks an epoch": Planted(Parts(server=recording(ForgetfulRecorder)), "the receipt: chain = "),
    "memory is left behind": Planted(Parts(server=untidy), "the run has left lockstep-"),
    "workers are told of a failure": Planted(
        Parts(coordinator=coordinating(Ungrateful)), "ends, although the run is done, with: "
    ),
    "a server is back without its shards": Planted(Parts(supervisor=Lonely), "the run has not ended within ", first=56),
    "a run is given up after one kill": Planted(Parts(supervisor=Impatient), "the supervisor ends the run, since "),
}
