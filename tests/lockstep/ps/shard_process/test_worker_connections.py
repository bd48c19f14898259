"""Who is behind a connection to a shard, and what may come from there."""

import pytest

from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.messages import SumsFrame
from lockstep.common.protocol.shard_messages import Admit, Hello
from lockstep.ps.received_frames import ReceivedFrames
from lockstep.ps.shard_process.worker_connections import MOST_UNIDENTIFIED, WorkerConnections

ADMIT = Admit(rank=3, incarnation="life-3", shares=False)
HELLO = Hello(rank=3, incarnation="life-3")
PEER = b"peer"


def connections() -> WorkerConnections:
    return WorkerConnections(micro_batches=4, book=ReceivedFrames(frames=2))


def served(step: int = 5) -> WorkerConnections:
    """Return connections of whom one has been sent the weights of a step."""
    book = connections()
    book.admit(ADMIT)
    worker = book.identify(PEER, HELLO)
    assert worker is not None
    worker.wanted_step = step
    assert book.is_due(worker, step)
    return book


def part_of(lo: int, hi: int, step: int = 5) -> SumsFrame:
    return SumsFrame(step=step, lo=lo, hi=hi, start=0)


@pytest.mark.parametrize("greets_first", [True, False])
def test_the_word_of_the_server_and_that_of_the_worker_come_in_any_order(greets_first: bool) -> None:
    book = connections()
    if greets_first:
        assert book.identify(PEER, HELLO) is None
        book.admit(ADMIT)
    else:
        book.admit(ADMIT)
        book.identify(PEER, HELLO)
    assert book.rank_of(PEER) == 3
    book.validate()
    book.remove(3)
    assert book.rank_of(PEER) is None
    assert not book.hellos


@pytest.mark.parametrize(
    "hello", [Hello(rank=3, incarnation="another"), Hello(rank=4, incarnation="life-3")], ids=["life", "rank"]
)
def test_one_that_says_to_be_another_is_nobody(hello: Hello) -> None:
    book = connections()
    book.admit(ADMIT)
    assert book.identify(PEER, hello) is None
    assert book.rank_of(PEER) is None
    assert not book.accept(PEER, part_of(0, 1), 0, 5)


def test_strangers_cost_no_more_than_so_much() -> None:
    book = served()
    for number in range(MOST_UNIDENTIFIED + 10):
        book.identify(number.to_bytes(4, "big"), Hello(rank=number + 10, incarnation="x"))
    assert len(book.hellos) <= MOST_UNIDENTIFIED + 1
    assert book.rank_of(PEER) == 3


def test_weights_are_due_once_a_step() -> None:
    book = served(5)
    worker = book.by_rank[3]
    assert not book.is_due(worker, 5)
    worker.wanted_step = 6
    assert not book.is_due(worker, 5)
    assert book.is_due(worker, 6)


def test_each_frame_of_a_node_is_taken_once() -> None:
    book = served()
    assert book.accept(PEER, part_of(0, 2), 0, 5)
    assert not book.accept(PEER, part_of(0, 2), 0, 5)
    assert not book.book.is_whole(PEER, 5, part_of(0, 2).node())
    assert book.accept(PEER, part_of(0, 2), 1, 5)
    assert book.book.is_whole(PEER, 5, part_of(0, 2).node())


def test_frames_of_another_step_are_not_taken_and_count() -> None:
    book = served()
    assert book.accept(PEER, part_of(0, 1), 0, 5)
    for _ in range(5):
        assert not book.accept(PEER, part_of(0, 1, step=4), 0, 5)
    with pytest.raises(RemoteProtocolError, match="it sends more than its leases ask for"):
        book.accept(PEER, part_of(0, 1, step=4), 0, 5)


def test_what_is_no_node_breaks_the_protocol() -> None:
    with pytest.raises(RemoteProtocolError, match=r"sums over \[1, 3\): not a node of 4 micro-batches"):
        served().accept(PEER, part_of(1, 3), 0, 5)


def test_one_that_says_to_be_another_later_is_not_the_first_any_more() -> None:
    book = served()
    assert book.identify(PEER, Hello(rank=7, incarnation="life-7")) is None
    book.validate()
    assert book.by_rank[3].peer is None
    assert not book.accept(PEER, part_of(0, 1), 0, 5)
    assert book.identify(b"other", HELLO) is book.by_rank[3]
