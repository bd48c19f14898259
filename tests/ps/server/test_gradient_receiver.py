"""What of the sums that workers send is added: those of the step that the slice is at."""

import numpy as np
import pytest

from common.aggregation.tree import Node
from common.protocol.messages import SumsFrame
from ps.coordinator.membership import Membership
from ps.server.gradient_receiver import GradientReceiver
from ps.setup import AdmissionPolicy, open_run
from tests.simulation.small import digits, job_of

PEER = b"peer"

WHOLE = Node(0, 4)


@pytest.fixture
def receiver() -> GradientReceiver:
    return GradientReceiver(open_run("run", job_of(), digits(), AdmissionPolicy()).shard, Membership(), None)


def take(receiver: GradientReceiver, node: Node, *, step: int = 0) -> bool:
    sums = np.ones(receiver.shard.weights.size, np.float32)
    return receiver.on_frame(PEER, SumsFrame(step=step, lo=node.lo, hi=node.hi, start=0), sums)


def test_a_frame_that_was_leased_is_added_once(receiver: GradientReceiver) -> None:
    receiver.book.grant(PEER, 0, WHOLE)
    assert [take(receiver, WHOLE), take(receiver, WHOLE)] == [True, False]
    assert receiver.shard.trees[0].tree.is_whole()


def test_a_frame_that_comes_when_the_slice_is_updated_is_not_added_to_the_next_step(receiver: GradientReceiver) -> None:
    # Other servers are still at it, so that the books are of the old step.
    for peer, node in ((PEER, Node(2, 4)), (b"other", WHOLE)):
        receiver.book.grant(peer, 0, node)
    receiver.shard.add(WHOLE, np.ones(receiver.shard.weights.size, np.float32))
    receiver.shard.update(0, 4)
    assert not take(receiver, Node(2, 4))
    assert not receiver.shard.trees[0].tree.covers(Node(2, 3))
