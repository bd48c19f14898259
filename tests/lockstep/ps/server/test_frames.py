"""The server takes in the frames that its leases ask for, and of nobody more than that."""

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.slices import FRAME, slices_for
from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import (
    Lease,
    Ping,
    Ready,
    Refused,
    Result,
    ServerMessage,
    Status,
    StatusRequest,
    SumsFrame,
    Weights,
)
from lockstep.common.statemachine.machine import kind_of
from lockstep.common.transport.in_memory import MemoryClient
from lockstep.ps.coordinator.events import Received
from tests.lockstep.ps.server.test_server import JOIN, digest_of, heard
from tests.simulation.cluster import Simulation
from tests.simulation.small import WIDE_SIZE, job_of, wide_net

#: Three frames.
JOB = job_of(model=wide_net(), micro_batches=4, steps=2)
SIZE = WIDE_SIZE


class Hand:
    """A run in which one worker is played by hand."""

    def __init__(self) -> None:
        self.simulation = Simulation(JOB)
        self.ranks = 0
        self.enter()

    def enter(self) -> None:
        """Let the worker, or one more, join and be ready."""
        self.client: MemoryClient = self.simulation.network.client()
        join = msgspec.structs.replace(JOIN, incarnation=f"{JOIN.incarnation}.{self.ranks}")
        self.client.send(encode(join))
        self.client.send(encode(Ready(rank=self.ranks, part=self.simulation.server.coordinator.info.part)))
        self.ranks += 1
        self.simulation.run_until_quiet()

    def send(self, *parts: SumsFrame, size: int = FRAME) -> None:
        for part in parts:
            self.client.send(encode(part, [np.zeros(size, np.float32)]))
            self.simulation.run_until_quiet()

    def refusals(self) -> list[str]:
        return [message.reason for message in heard(self.client) if isinstance(message, Refused)]

    def finish(self) -> str:
        self.client.close()
        self.simulation.add_worker()
        return self.simulation.finish()


def part(start: int = 0, *, step: int = 0, lo: int = 0, hi: int = 4) -> SumsFrame:
    return SumsFrame(step=step, lo=lo, hi=hi, start=start)


def test_weights_are_sent_in_frames_the_last_of_which_the_lease_carries() -> None:
    hand = Hand()
    messages, vector = [], np.full(SIZE, np.nan, np.float32)
    while (frames := hand.client.receive(None)) is not None:
        message, arrays = decode(frames, ServerMessage)
        messages.append(message)
        if isinstance(message, Weights | Lease):
            assert message.start is not None
            vector[message.start : message.start + len(arrays[0])] = arrays[0]
    assert [type(message) for message in messages[1:]] == [Weights] * 2 + [Lease]
    assert vector.tobytes() == hand.simulation.server.shard.weights.tobytes()


#: Frames that no lease asks for, their size, and the reason that they are refused.
BAD = (
    (part(5), FRAME, "sums over 0-3 from 5 on: not a frame of this slice"),
    (part(3 * FRAME), FRAME, "not a frame of this slice"),
    (part(lo=1, hi=3), FRAME, "sums over 1-2 from 0 on: not a frame of this slice"),
    (part(hi=2**31), FRAME, "not a frame of this slice"),
    (part(), FRAME - 1, f"sums of {FRAME - 1} values: expected {FRAME}"),
    (part(2 * FRAME), FRAME, f"sums of {FRAME} values: expected {SIZE - 2 * FRAME}"),
)


def test_what_is_no_frame_costs_the_worker_its_place_and_leaves_no_trace() -> None:
    hand = Hand()
    for bad, size, text in BAD:
        hand.send(bad, size=size)
        (reason,) = hand.refusals()
        assert text in reason
        hand.enter()
    assert hand.finish() == digest_of(JOB)


@pytest.mark.parametrize("has_last", [False, True])
def test_a_result_counts_once_all_its_frames_are_there_the_last_of_which_it_carries(*, has_last: bool) -> None:
    hand = Hand()
    hand.send(part(0), part(FRAME))
    start, frames = (2 * FRAME, [np.zeros(SIZE - 2 * FRAME, np.float32)]) if has_last else (None, [])
    result = Result(
        work="train", step=0, lo=0, hi=4, start=start, loss_sum=1.0, count=16, compute_s=0.1, losses=bytes(16)
    )
    hand.client.send(encode(result, frames))
    hand.simulation.run_until_quiet()
    assert hand.simulation.server.coordinator.round.step == int(has_last)
    assert hand.refusals() == []


def test_sums_with_the_result_of_other_work_cost_the_worker_its_place() -> None:
    hand = Hand()
    result = Result(work="evaluate", step=0, lo=0, hi=1, start=0, loss_sum=1.0, count=16, compute_s=0.1)
    hand.client.send(encode(result, [np.zeros(FRAME, np.float32)]))
    hand.simulation.run_until_quiet()
    (reason,) = hand.refusals()
    assert "sums with the result of 'evaluate' work: expected them of training only" in reason


def test_frames_that_wait_are_handled_together_and_one_sign_of_progress() -> None:
    hand = Hand()
    server, whole = hand.simulation.server, Node(0, 4)
    for start in (0, FRAME):
        hand.client.send(encode(part(start), [np.zeros(FRAME, np.float32)]))
    server.inbox.listen(0.0)
    (event,) = server.inbox.take() or ()
    assert isinstance(event, Received)
    assert event.message == part(FRAME)
    assert [tree.tree.covers(whole) for tree in server.shard.trees] == [True, True, False]
    hand.client.send(encode(part(2 * FRAME), [np.zeros(SIZE - 2 * FRAME, np.float32)]))
    hand.client.send(encode(Ping()))
    server.inbox.listen(0.0)
    # What follows shows progress as well.
    assert [kind_of(event) for event in server.inbox.take() or ()] == [Ping]
    assert server.shard.is_whole()


def test_results_that_wait_are_handled_together_and_before_what_follows_them() -> None:
    hand = Hand()
    server = hand.simulation.server
    hand.send(part(0), part(FRAME))
    result = Result(
        work="train", step=0, lo=0, hi=4, start=2 * FRAME, loss_sum=1.0, count=16, compute_s=0.1, losses=bytes(16)
    )
    last = [np.zeros(SIZE - 2 * FRAME, np.float32)]
    for message, arrays in ((result, last), (result, last), (Ping(), []), (Ping(), [])):
        hand.client.send(encode(message, arrays))
    server.inbox.listen(0.0)
    assert [kind_of(event) for event in server.inbox.take() or ()] == [Result, Result, Ping]
    assert server.shard.is_whole()


def test_frames_put_off_the_end_of_a_lease_and_frames_that_nobody_wants_do_not() -> None:
    hand = Hand()
    for start in (0, FRAME):
        hand.simulation.wait(40)
        hand.send(part(start))
    assert not any("leased again" in text for text in hand.simulation.said)
    hand.simulation.wait(40)
    hand.send(part(0), part(FRAME))
    hand.simulation.wait(30)
    hand.simulation.run_until_quiet()
    assert any("leased again" in text for text in hand.simulation.said)


def test_a_worker_that_sends_for_ever_loses_its_place_and_its_connection() -> None:
    hand = Hand()
    for _ in range(100):
        hand.send(part(0))
    (reason,) = hand.refusals()
    assert "it sends more than its leases ask for" in reason
    assert len([text for text in hand.simulation.said if "refused a peer" in text]) == 1
    hand.client.send(encode(StatusRequest()))
    hand.simulation.run_until_quiet()
    # Over another connection it is one that may ask, and who has no place.
    (status,) = heard(hand.client)
    assert isinstance(status, Status)
    assert (status.broken, status.workers) == (1, [])


def test_one_that_was_sent_away_is_not_answered() -> None:
    hand = Hand()
    hand.client.send([b"garbage"])
    hand.simulation.run_until_quiet()
    assert len(hand.refusals()) == 1
    hand.client.send(encode(StatusRequest()))
    hand.simulation.run_until_quiet()
    assert heard(hand.client) == []


def test_nothing_is_kept_of_what_strangers_send() -> None:
    hand = Hand()
    stranger = hand.simulation.network.client()
    for _ in range(20):
        stranger.send(encode(part(0), [np.ones(FRAME, np.float32)]))
        hand.simulation.run_until_quiet()
    server = hand.simulation.server
    assert not any(tree.tree.held for tree in server.shard.trees)
    assert len(server.group.own.workers) == 1
    stranger.close()
    assert hand.finish() == digest_of(JOB)


def test_a_shard_of_a_slice_knows_its_frames_by_their_place_in_the_whole_vector() -> None:
    first, second = slices_for(SIZE, 2)
    assert second.frames()[0].start == first.stop
