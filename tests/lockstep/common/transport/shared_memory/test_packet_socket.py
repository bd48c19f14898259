"""Packets between two processes of one user: whole, in order, bounded, read to the last when their sender is gone."""

import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.common.transport.port import PeerGone, PeerSlow
from lockstep.common.transport.shared_memory.packet_socket import (
    BACKLOG,
    PACKET_BYTES,
    Callers,
    PacketSocket,
    call,
    is_short,
)

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no sockets that keep the bounds of packets")


@pytest.fixture
def callers(short_root: Path) -> Iterator[Callers]:
    callers = Callers.at(short_root / "callers")
    assert callers is not None
    yield callers
    callers.close()


@pytest.fixture
def ends(callers: Callers, short_root: Path) -> Iterator[tuple[PacketSocket, PacketSocket]]:
    """Who has called, and who has answered."""
    caller = call(short_root / "callers", "sums-0")
    answered = callers.answer("sums-0")
    assert caller is not None
    assert answered is not None
    yield caller, answered
    caller.close()
    answered.close()


def test_packets_arrive_whole_and_in_order_both_ways(ends: tuple[PacketSocket, PacketSocket]) -> None:
    for sender, receiver in (ends, ends[::-1]):
        assert receiver.receive() is None
        packets = [b"a", bytes(PACKET_BYTES), b"\0"]
        for packet in packets:
            sender.send(packet)
        assert [receiver.receive() for _ in packets] == packets
        assert receiver.receive() is None


def test_last_words_are_heard_and_then_the_end(ends: tuple[PacketSocket, PacketSocket]) -> None:
    caller, answered = ends
    caller.send(b"the last")
    caller.close()
    assert answered.receive() == b"the last"
    with pytest.raises(PeerGone):
        answered.receive()
    with pytest.raises(PeerGone):
        answered.send(b"too late")


@pytest.mark.parametrize("speaks_first", [False, True])
def test_last_words_are_heard_of_one_that_has_not_read_ours(
    ends: tuple[PacketSocket, PacketSocket], speaks_first: bool
) -> None:
    caller, answered = ends
    answered.send(b"unread")
    caller.send(b"the last but one")
    caller.send(b"the last")
    caller.close()
    if speaks_first:
        with pytest.raises(PeerGone):
            answered.send(b"too late")
    assert [answered.receive(), answered.receive()] == [b"the last but one", b"the last"]
    with pytest.raises(PeerGone):
        answered.receive()


@pytest.mark.parametrize("packet", [b"", bytes(PACKET_BYTES + 1)])
def test_what_is_no_packet_of_ours_ends_it(ends: tuple[PacketSocket, PacketSocket], packet: bytes) -> None:
    caller, answered = ends
    caller.send(packet)
    with pytest.raises(PeerGone):
        answered.receive()


def sent_until_slow(sender: PacketSocket) -> int:
    """Send until the other end counts as slow; return how many packets wait for it."""
    for sent in range(100_000):
        try:
            sender.send(bytes(1000))
        except PeerSlow:
            return sent
    raise AssertionError("it never counts as slow")


def test_who_does_not_read_is_slow_until_it_does(ends: tuple[PacketSocket, PacketSocket]) -> None:
    caller, answered = ends
    # What may wait is bounded by the system, in bytes.
    assert 10 <= sent_until_slow(caller) <= 2000
    with pytest.raises(PeerSlow):
        caller.send(b"on", timeout_s=0.01)
    while answered.receive() is not None:
        pass
    caller.send(b"on")
    assert answered.receive() == b"on"


def test_callers_are_told_apart_by_name_and_the_later_of_two_counts(callers: Callers, short_root: Path) -> None:
    path = short_root / "callers"
    assert callers.answer("sums-1") is None
    before, one, two = (call(path, name) for name in ("sums-1", "sums-1", "sums-2"))
    assert before is not None
    assert one is not None
    assert two is not None
    second, first = callers.answer("sums-2"), callers.answer("sums-1")
    assert first is not None
    assert second is not None
    first.send(b"1")
    second.send(b"2")
    assert (one.receive(), two.receive()) == (b"1", b"2")
    with pytest.raises(PeerGone):
        before.receive()
    assert callers.answer("sums-1") is None
    for end in (before, one, two, first, second):
        end.close()


def test_who_calls_and_is_slow_to_say_his_name_is_waited_for(callers: Callers, short_root: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as slow:
        slow.connect(str(short_root / "callers"))
        assert callers.answer("sums-1") is None
        slow.send(b"sums-1")
        answered = callers.answer("sums-1")
        assert answered is not None
        answered.send(b"at last")
        assert slow.recv(100) == b"at last"
        answered.close()


def test_of_those_who_are_never_answered_the_last_are_kept(callers: Callers, short_root: Path) -> None:
    path, made = short_root / "callers", list[PacketSocket | None]()
    for number in range(BACKLOG + 1):
        made.append(call(path, str(number)))
        assert callers.answer("nobody") is None
    assert callers.answer("0") is None
    made.append(callers.answer("1"))
    assert made[-1] is not None
    for end in made:
        if end is not None:
            end.close()


def test_the_file_is_open_to_this_user_only(callers: Callers, short_root: Path) -> None:
    assert stat.S_IMODE((short_root / "callers").stat().st_mode) == 0o600


def test_there_is_none_where_nobody_listens_or_the_path_is_too_long(short_root: Path) -> None:
    assert call(short_root / "callers", "sums-0") is None
    assert Callers.at(short_root / ("long" * 40)) is None
    assert call(short_root / ("long" * 40), "sums-0") is None


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([b"lease"], True),
        ([bytes(PACKET_BYTES)], True),
        ([bytes(PACKET_BYTES + 1)], False),
        ([memoryview(bytes(2 * PACKET_BYTES)).cast("d")], False),
        ([b"header", b"sums"], False),
        ([b""], False),
    ],
)
def test_only_short_messages_of_one_frame_may_go_over_it(frames: list[bytes | memoryview], expected: bool) -> None:
    assert is_short(frames) == expected
