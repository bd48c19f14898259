"""The service for a slice: its workers, the sums that it adds, each once, and the weights that it sends."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import Buffer
from lockstep.common.protocol.messages import Lease, Message, Result, SumsFrame, Weights
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import Admit, Hello
from lockstep.common.statemachine.machine import PeerLeft
from lockstep.common.transport.in_memory import MemoryNetwork
from lockstep.common.transport.port import ServerPort
from lockstep.ps.run.progress import Traffic
from lockstep.ps.setup import open_run
from lockstep.ps.shard.outbox import Outbox
from lockstep.ps.shard.service import COPIES, MOST_UNIDENTIFIED, SliceService
from tests.simulation.small import digits, job_of, wide_net

#: One frame, and three.
SMALL, LARGE = job_of(micro_batches=4), job_of(model=wide_net(), micro_batches=4)
PEER, OTHER = b"peer", b"other"


def admit_of(rank: int) -> Admit:
    return Admit(rank=rank, incarnation=f"life-{rank}")


def hello_of(rank: int) -> Hello:
    return Hello(rank=rank, incarnation=f"life-{rank}")


def part_of(lo: int, hi: int, *, step: int = 0, start: int = 0) -> SumsFrame:
    return SumsFrame(step=step, lo=lo, hi=hi, start=start)


@dataclass
class KeptOutbox(Outbox):
    """Keeps what it is to send."""

    port: ServerPort = field(default_factory=lambda: MemoryNetwork(0).server())
    traffic: Traffic = field(default_factory=Traffic)
    sent: list[tuple[bytes, Weights | Lease, Vector]] = field(default_factory=list)
    unreachable: set[bytes] = field(default_factory=set)
    encoded: int = 0

    def shared(self, message: Message, words: Vector) -> list[Buffer]:
        self.encoded += 1
        return super().shared(message, words)

    def send_frames(self, peer: bytes, message: Message, frames: list[Buffer]) -> list[PeerLeft]:
        assert isinstance(message, Weights | Lease)
        self.sent.append((peer, message, np.frombuffer(b"".join(frames[1:]), np.float32)))
        return [PeerLeft(peer=peer, reason="gone")] if peer in self.unreachable else []


@dataclass
class Served:
    """A service with worker 3 behind `PEER`, which was sent the weights."""

    job: Job = field(default_factory=lambda: SMALL)
    outbox: KeptOutbox = field(default_factory=KeptOutbox)

    def __post_init__(self) -> None:
        self.shard = open_run("run", self.job, digits(), RunOptions()).shard
        self.service = SliceService(self.shard, self.outbox)
        self.join(3, PEER)
        assert self.service.send_weights(3, 0) == []
        self.sent = self.outbox.sent

    def join(self, rank: int, peer: bytes) -> None:
        self.service.admit(admit_of(rank))
        self.service.identify(peer, hello_of(rank))

    def frame(self, sums: SumsFrame, *, peer: bytes = PEER) -> bool:
        frame = self.service.frame_at.get(sums.start)
        size = 1 if frame is None else len(self.shard.frames[frame])
        return self.service.on_frame(peer, sums, np.ones(size, np.float32))

    def frames(self, lo: int, hi: int) -> list[bool]:
        return [self.frame(part_of(lo, hi, start=frame.start)) for frame in self.shard.frames]

    def result(self, lo: int, hi: int, *, step: int = 0, work: str = "train") -> bool:
        result = Result(
            work=work,  # type: ignore[arg-type]  # one of the works
            step=step,
            lo=lo,
            hi=hi,
            loss_sum=1.0,
            count=1,
            compute_s=0.1,
            losses=b"",
        )
        return self.service.on_result(PEER, result)

    def has(self, node: Node) -> bool:
        return self.shard.trees[0].tree.covers(node)


def test_sums_that_were_not_leased_to_their_worker_are_not_added_where_leases_are_known() -> None:
    served = Served()
    served.service.was_leased = lambda rank, node: (rank, node) == (3, Node(0, 2))
    assert not served.frame(part_of(2, 4))
    assert served.result(2, 4)  # which the coordinator refuses
    assert not served.has(Node(2, 4))
    assert served.frame(part_of(0, 2))
    assert served.has(Node(0, 2))


# Workers


@pytest.mark.parametrize("greets_first", [True, False])
def test_the_word_of_the_server_and_that_of_the_worker_come_in_any_order(greets_first: bool) -> None:
    served = Served()
    service = served.service
    if greets_first:
        assert service.identify(OTHER, hello_of(4)) == []
        service.admit(admit_of(4))
    else:
        served.join(4, OTHER)
    worker = service.worker_at(OTHER)
    assert worker is not None
    assert worker.admit.rank == 4
    service.validate()
    service.forget(4)
    assert service.worker_at(OTHER) is None
    assert list(service.hellos) == [PEER]


@pytest.mark.parametrize(
    "hello", [Hello(rank=3, incarnation="another"), Hello(rank=4, incarnation="life-3")], ids=["life", "rank"]
)
def test_a_connection_that_claims_another_identity_has_no_worker(hello: Hello) -> None:
    served = Served()
    served.service.identify(OTHER, hello)
    assert served.service.worker_at(OTHER) is None
    assert not served.frame(part_of(0, 1), peer=OTHER)


def test_a_connection_that_becomes_another_worker_is_not_the_first_one_any_more() -> None:
    served = Served()
    served.service.identify(PEER, hello_of(7))
    served.service.validate()
    assert served.service.workers[3].peer is None
    assert not served.frame(part_of(0, 1))
    served.service.identify(OTHER, hello_of(3))
    assert served.service.worker_at(OTHER) is served.service.workers[3]


def test_strangers_cost_no_more_than_so_much() -> None:
    served = Served()
    for number in range(MOST_UNIDENTIFIED + 10):
        served.service.identify(number.to_bytes(4, "big"), Hello(rank=number + 10, incarnation="x"))
    assert len(served.service.hellos) <= MOST_UNIDENTIFIED + 1
    assert served.service.worker_at(PEER) is not None


def test_of_a_worker_that_is_gone_nothing_is_added_or_kept() -> None:
    served = Served(LARGE)
    served.join(4, OTHER)
    served.frame(part_of(0, 2))
    assert served.service.forget_peer(PEER) == 3
    assert served.service.forget_peer(PEER) is None
    assert not served.frame(part_of(0, 2))
    assert (list(served.service.workers), list(served.service.hellos)) == ([4], [OTHER])


# Weights


def test_weights_go_out_once_a_step_in_frames_as_soon_as_the_worker_is_known() -> None:
    served = Served(LARGE)
    assert [weights.start for _, weights, _ in served.sent] == [frame.start for frame in served.shard.frames]
    assert np.concatenate([words for _, _, words in served.sent]).tobytes() == served.shard.weights.tobytes()
    served.sent.clear()
    served.service.send_weights(3, 0)
    served.service.send_weights(3, 1)
    served.service.admit(admit_of(4))
    served.service.send_weights(4, 0)
    assert served.sent == []
    served.service.identify(OTHER, hello_of(4))
    assert {peer for peer, _, _ in served.sent} == {OTHER}
    # Encoded once for both.
    assert (len(served.sent), served.outbox.encoded) == (3, 3)


def test_the_first_lease_of_a_step_carries_the_last_frame_and_other_leases_none() -> None:
    served = Served(LARGE)
    served.join(4, OTHER)
    served.sent.clear()
    lease = Lease(work="train", step=0, lo=0, hi=2, number=7)
    for lacks in (True, False):
        assert served.service.lacks_weights(4, 0) is lacks
        assert served.service.send_lease(4, lease) == []
    *before, (_, first, _), (_, second, nothing) = served.sent
    assert [type(message) for _, message, _ in before] == [Weights, Weights]
    assert first == replace(lease, start=served.shard.frames[-1].start)
    assert (second, nothing.size) == (lease, 0)
    sent = np.concatenate([words for _, _, words in served.sent])
    assert sent.tobytes() == served.shard.weights.tobytes()


def test_a_lease_of_a_worker_that_is_gone_is_sent_to_no_process() -> None:
    served = Served()
    served.sent.clear()
    assert served.service.send_lease(5, Lease(work="train", step=0, lo=0, hi=2)) == []
    assert served.sent == []


def test_weights_are_encoded_again_after_an_update() -> None:
    served = Served()
    served.frames(0, 4)
    served.shard.update(0, 4.0)
    served.service.send_weights(3, 1)
    assert (served.outbox.encoded, len(served.sent)) == (2, 2)
    assert [weights.step for _, weights, _ in served.sent] == [0, 1]
    assert served.sent[1][2].tobytes() == served.shard.weights.tobytes() != served.sent[0][2].tobytes()


def test_a_worker_that_cannot_be_reached_has_left() -> None:
    served = Served(LARGE, KeptOutbox(unreachable={OTHER}))
    served.join(4, OTHER)
    served.sent.clear()
    assert served.service.send_weights(4, 0) == [PeerLeft(peer=OTHER, reason="gone")]
    assert len(served.sent) == 1


# Sums


def test_each_frame_of_a_node_is_added_once() -> None:
    served = Served(LARGE)
    assert served.frames(0, 4) == [True] * 3
    assert served.shard.is_whole()
    assert served.frames(0, 4) == [False] * 3


def test_sums_are_whole_once_all_their_frames_have_come_in_any_order() -> None:
    served, seen = Served(LARGE), []
    for frame in (2, 0, 1):
        seen.append(served.result(0, 2))
        assert served.frame(part_of(0, 2, start=served.shard.frames[frame].start))
    assert (seen, served.result(0, 2)) == ([False] * 3, True)
    # Those of another node are not.
    assert not served.result(2, 4)


def test_a_result_without_sums_is_for_the_coordinator_if_none_could_count() -> None:
    served = Served()
    assert served.result(0, 4, work="evaluate")
    assert served.result(0, 4, step=1)
    served.service.forget(3)
    assert served.result(0, 4)


@pytest.mark.parametrize("step", [-1, 1])
def test_sums_of_a_step_whose_weights_the_worker_was_not_sent_are_not_added(step: int) -> None:
    served = Served()
    assert not served.frame(part_of(0, 4, step=step))
    served.join(4, OTHER)
    assert not served.frame(part_of(0, 4), peer=OTHER)
    assert not served.has(Node(0, 4))


def test_what_comes_when_the_slice_is_updated_is_not_added_to_the_next_step() -> None:
    # Other servers may still be making the update.
    served = Served()
    served.frame(part_of(0, 4))
    served.shard.update(0, 4)
    for step in (0, 1):
        assert not served.frame(part_of(0, 2, step=step))
    assert not served.shard.trees[0].tree.held


def test_late_and_doubled_frames_are_tolerated_and_no_more() -> None:
    served = Served()
    # As many as there are for the weights and for one node.
    for _ in range(2 * COPIES * 2 - 1):
        served.frame(part_of(0, 1, step=1))
        if not served.has(Node(0, 1)):
            served.frame(part_of(0, 1))
    with pytest.raises(RemoteProtocolError, match="it sends more than its leases ask for"):
        served.frame(part_of(0, 1))


def test_of_a_stranger_nothing_is_kept() -> None:
    served = Served()
    for _ in range(100):
        assert not served.frame(part_of(0, 4), peer=OTHER)
    assert (list(served.service.workers), list(served.service.hellos)) == ([3], [PEER])
    assert not served.shard.trees[0].tree.held


@pytest.mark.parametrize("sums", [part_of(1, 3), part_of(0, 4, start=5), part_of(0, 2**31), part_of(3, 1)])
def test_what_is_not_a_frame_of_a_node_breaks_the_protocol(sums: SumsFrame) -> None:
    with pytest.raises(RemoteProtocolError, match=f"sums over .* from {sums.start} on: not a frame of this slice"):
        Served().frame(sums)


def test_values_that_are_not_finite_or_too_many_break_the_protocol() -> None:
    served = Served()
    size = served.shard.weights.size
    with pytest.raises(RemoteProtocolError, match=f"sums of {size + 1} values: expected {size}"):
        served.service.on_frame(PEER, part_of(0, 4), np.zeros(size + 1, np.float32))
    with pytest.raises(RemoteProtocolError, match="a gradient that is not finite, of micro-batches 0-1 of step 0"):
        served.service.on_frame(PEER, part_of(0, 2), np.full(size, np.inf, np.float32))


def test_a_worker_that_shares_memory_may_send_sums_and_is_sent_no_weights() -> None:
    served = Served()
    served.sent.clear()
    served.service.admit(admit_of(5), shares=True)
    served.service.identify(OTHER, hello_of(5))
    assert not served.frame(part_of(0, 4), peer=OTHER)
    assert (served.service.send_weights(5, 0), served.sent) == ([], [])
    assert served.frame(part_of(0, 4), peer=OTHER)
