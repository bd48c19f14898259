"""Which of the sums that workers send are added: those that a lease of the step at hand asks for, each once."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import Lease, Ready, Result, SumsFrame
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.statemachine.machine import Send
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.parts.assembly import all_parts
from lockstep.ps.server.gradient_receiver import GradientReceiver
from lockstep.ps.setup import open_run
from tests.lockstep.ps.runs import join_of, peer_of, result_of
from tests.simulation.small import digits, job_of

#: One frame.
JOB = job_of(micro_batches=4)


@dataclass
class Received:
    """A receiver, and a coordinator that has leased work to so many workers."""

    workers: int = 1
    leases: dict[int, list[Lease]] = field(default_factory=dict)
    coordinator: Coordinator = field(init=False)
    receiver: GradientReceiver = field(init=False)

    def __post_init__(self) -> None:
        setup = open_run("run", JOB, digits(), RunOptions(min_workers=self.workers))
        self.coordinator = Coordinator(setup.info, all_parts())
        self.receiver = GradientReceiver(self.coordinator, setup.shard, None)
        for worker in range(self.workers):
            self.handle(events.Received(peer=peer_of(worker), message=join_of(worker)))
            self.handle(events.Received(peer=peer_of(worker), message=Ready(rank=worker, term=setup.info.term)))

    def handle(self, event: events.Event) -> None:
        for effect in self.coordinator.handle(event, 0.0):
            if isinstance(effect, Send) and isinstance(effect.message, Lease):
                self.receiver.expect(effect.peer, effect.message)
                self.leases.setdefault(int.from_bytes(effect.peer, "big"), []).append(effect.message)

    def sums(self) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
        return np.ones(self.receiver.shard.weights.size, np.float32)

    def frame(self, worker: int, node: Node, *, step: int = 0) -> bool:
        received = SumsFrame(step=step, lo=node.lo, hi=node.hi, start=0)
        return self.receiver.on_frame(peer_of(worker), received, self.sums())

    def result(self, worker: int, result: Result, *, has_sums: bool) -> bool:
        return self.receiver.on_result(peer_of(worker), result, [self.sums()] if has_sums else [])

    def added(self, node: Node) -> bool:
        return self.receiver.shard.trees[0].tree.covers(node)


def node_of(lease: Lease) -> Node:
    return Node(lease.lo, lease.hi)


def test_a_frame_that_a_lease_asks_for_is_added_once() -> None:
    received = Received()
    (lease,) = received.leases[0]
    assert [received.frame(0, node_of(lease)), received.frame(0, node_of(lease))] == [True, False]
    assert received.receiver.shard.is_whole()


def test_a_frame_that_comes_with_its_result_is_added_like_any_other() -> None:
    received = Received()
    (lease,) = received.leases[0]
    assert received.result(0, result_of(lease), has_sums=True)
    assert received.receiver.shard.is_whole()
    assert not received.frame(0, node_of(lease))


def test_a_result_without_its_sums_may_not_count() -> None:
    received = Received()
    (lease,) = received.leases[0]
    assert not received.result(0, result_of(lease), has_sums=False)
    received.frame(0, node_of(lease))
    assert received.result(0, result_of(lease), has_sums=False)


def test_sums_that_no_lease_asks_for_are_not_added_and_the_coordinator_refuses_their_result() -> None:
    received = Received(workers=2)
    others = received.leases[1][0]
    strays = [(0, node_of(others), 0), (2, Node(0, 1), 0), (0, Node(0, 4), 0), (0, node_of(received.leases[0][0]), 1)]
    for worker, node, step in strays:
        assert not received.frame(worker, node, step=step)
        assert not any(received.added(Node(at, at + 1)) for at in range(4))
    assert received.result(0, result_of(others), has_sums=True)
    assert not received.added(node_of(others))


def test_what_comes_when_the_slice_is_updated_is_not_added_to_the_next_step() -> None:
    # Other servers are still making the update, so that the leases are those of the old step.
    received = Received(workers=2)
    shard = received.receiver.shard
    shard.add(Node(0, 4), received.sums())
    shard.update(0, 4)
    assert not received.frame(0, node_of(received.leases[0][0]))
    assert not shard.trees[0].tree.held


@pytest.mark.parametrize("worker", [0, 1])
def test_of_a_worker_that_is_gone_nothing_is_added(worker: int) -> None:
    received = Received(workers=2)
    received.handle(events.PeerLeft(peer=peer_of(worker), reason="interrupted"))
    received.receiver.forget(peer_of(worker), worker)
    assert not received.frame(worker, node_of(received.leases[worker][0]))
