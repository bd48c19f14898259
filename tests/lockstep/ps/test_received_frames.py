"""Each frame of a step counts once; a peer that sends more than was asked of it is found."""

import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import RemoteProtocolError
from lockstep.ps.received_frames import COPIES, ReceivedFrames

ONE, OTHER = b"one", b"other"
NODE = Node(2, 4)


def book_of(frames: int = 3) -> ReceivedFrames:
    """Return a book in which the sums of `NODE` are expected of `ONE`."""
    book = ReceivedFrames(frames)
    book.expect(ONE, frames + 1)
    return book


def test_sums_are_whole_once_all_their_frames_have_come_in_any_order() -> None:
    book = book_of()
    seen = []
    for frame in (2, 0, 1):
        seen.append(book.is_whole(ONE, 5, NODE))
        assert book.add(ONE, 5, NODE, frame)
    assert (seen, book.is_whole(ONE, 5, NODE)) == ([False] * 3, True)


def test_a_frame_counts_once() -> None:
    book = book_of()
    assert [book.add(ONE, 5, NODE, 1) for _ in range(3)] == [True, False, False]
    assert not book.is_whole(ONE, 5, NODE)


@pytest.mark.parametrize(
    ("peer", "step", "node"),
    [(OTHER, 5, NODE), (ONE, 4, NODE), (ONE, 6, NODE), (ONE, 5, Node(2, 3)), (ONE, 5, Node(0, 4))],
    ids=["another's", "too late", "too early", "a part of it", "more than it"],
)
def test_sums_are_told_apart_by_peer_step_and_node(peer: bytes, step: int, node: Node) -> None:
    book = book_of(frames=1)
    book.add(ONE, 5, NODE, 0)
    assert not book.has_any(peer, step, node)
    assert not book.is_whole(peer, step, node)


def test_the_frames_of_a_step_are_forgotten_with_it() -> None:
    book = book_of()
    book.add(ONE, 5, NODE, 0)
    book.add(OTHER, 6, NODE, 0)
    assert list(book.missing) == [(OTHER, NODE)]


def test_late_and_doubled_frames_are_tolerated_and_no_more() -> None:
    book = book_of()
    book.expect(ONE, 1)
    for _ in range(COPIES * (3 + 1 + 1)):
        book.count(ONE)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="it sends more than its leases ask for"):
            book.count(ONE)


def test_of_a_stranger_nothing_is_kept() -> None:
    book = book_of()
    for _ in range(100):
        book.count(OTHER)
    assert OTHER not in book.allowance


def test_of_a_peer_that_is_gone_nothing_is_kept() -> None:
    book = book_of()
    book.expect(OTHER, 1)
    book.add(ONE, 5, NODE, 0)
    book.add(OTHER, 5, Node(0, 2), 0)
    book.forget(ONE)
    assert not book.has_any(ONE, 5, NODE)
    assert list(book.missing) == [(OTHER, Node(0, 2))]
    assert list(book.allowance) == [OTHER]
