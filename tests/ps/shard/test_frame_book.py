"""Frames count for a lease of the step at hand, each once; whoever sends more than was asked of it is found."""

import pytest

from common.aggregation.tree import Node
from common.errors import RemoteProtocolError
from ps.shard.frame_book import PATIENCE, FrameBook

ONE, OTHER = b"one", b"other"
NODE = Node(2, 4)


def book_of(frames: int = 3) -> FrameBook:
    """Return a book in which `ONE` has a lease of `NODE` in step 5."""
    book = FrameBook(frames)
    book.grant(ONE, 5, NODE)
    return book


def test_a_lease_is_whole_once_all_its_frames_have_come_in_any_order() -> None:
    book = book_of()
    seen = []
    for frame in (2, 0, 1):
        seen.append(book.is_whole(ONE, 5, NODE))
        assert book.take(ONE, 5, NODE, frame)
    assert (seen, book.is_whole(ONE, 5, NODE)) == ([False] * 3, True)


def test_a_frame_counts_once() -> None:
    book = book_of()
    assert [book.take(ONE, 5, NODE, 1) for _ in range(3)] == [True, False, False]
    assert not book.is_whole(ONE, 5, NODE)


@pytest.mark.parametrize(
    ("peer", "step", "node"),
    [(OTHER, 5, NODE), (ONE, 4, NODE), (ONE, 6, NODE), (ONE, 5, Node(2, 3)), (ONE, 5, Node(0, 4))],
    ids=["another's", "too late", "too early", "a part of it", "more than it"],
)
def test_what_was_not_leased_does_not_count(peer: bytes, step: int, node: Node) -> None:
    book = book_of()
    assert not book.take(peer, step, node, 0)
    assert not book.is_whole(peer, step, node)


def test_leases_of_a_step_end_with_it() -> None:
    book = book_of()
    book.grant(OTHER, 6, NODE)
    assert not book.take(ONE, 5, NODE, 0)
    assert not book.take(ONE, 6, NODE, 0)
    assert list(book.missing) == [(OTHER, NODE)]


def test_what_has_come_stays_where_the_same_is_leased_again() -> None:
    book = book_of()
    book.take(ONE, 5, NODE, 0)
    book.grant(ONE, 5, NODE)
    assert not book.take(ONE, 5, NODE, 0)
    assert book.take(ONE, 5, NODE, 1)


def test_late_and_doubled_frames_are_suffered_and_no_more() -> None:
    book = book_of()
    book.expect(ONE, 1)
    for _ in range(PATIENCE * (3 + 1 + 1)):
        book.take(ONE, 4, NODE, 0)
    with pytest.raises(RemoteProtocolError, match="it sends more than its leases ask for"):
        book.take(ONE, 5, NODE, 0)
    with pytest.raises(RemoteProtocolError):
        book.count(ONE)


def test_of_a_stranger_nothing_is_kept() -> None:
    book = book_of()
    for _ in range(100):
        book.count(OTHER)
    assert OTHER not in book.allowance


def test_of_whom_is_gone_nothing_is_kept() -> None:
    book = book_of()
    book.grant(OTHER, 5, Node(0, 2))
    book.forget(ONE)
    assert not book.take(ONE, 5, NODE, 0)
    assert list(book.missing) == [(OTHER, Node(0, 2))]
    assert list(book.allowance) == [OTHER]
