"""A connection of ZeroMQ's with a shortcut beside it: what goes over which, and what is left when the shortcut ends."""

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.port import PeerGone, PeerSlow
from lockstep.common.transport.shared_memory.packet_socket import PACKET_BYTES, Callers, PacketSocket, call
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.common.transport.zeromq.ports import dial, serve, wait_for_any
from lockstep.common.transport.zeromq.server import ZeroMqServer

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no sockets that keep the bounds of packets")

#: Seconds that no test waits unless it fails.
TIMEOUT_S = 20.0


@dataclass
class Pair:
    """A server with a client that was heard, and both ends of a shortcut, which are not in use yet."""

    server: ZeroMqServer
    client: ZeroMqClient
    peer: bytes
    at_server: PacketSocket
    at_client: PacketSocket

    def shorten(self) -> None:
        self.server.shorten(self.peer, self.at_server)
        self.client.shorten(self.at_client)

    def use(self) -> None:
        """Let both ends speak over it: the client does once it has heard the server there."""
        self.shorten()
        self.server.send(self.peer, [b"first"])
        assert self.read() == [b"first"]

    def hear(self) -> list[bytes]:
        clock = SystemClock()
        deadline = clock.now() + TIMEOUT_S
        while (received := self.server.receive(TIMEOUT_S)) is None:
            assert clock.now() < deadline
        assert received[0] == self.peer
        return [bytes(frame) for frame in received[1]]

    def read(self) -> list[bytes]:
        clock = SystemClock()
        deadline = clock.now() + TIMEOUT_S
        while (frames := self.client.receive(TIMEOUT_S)) is None:
            assert clock.now() < deadline
        return [bytes(frame) for frame in frames]


@pytest.fixture
def pair(short_root: Path) -> Iterator[Pair]:
    callers = Callers.at(short_root / "c")
    assert callers is not None
    server = serve(f"ipc://{short_root}/s")
    client = dial(server.address)
    client.send([b"hello"])
    received = server.receive(TIMEOUT_S)
    assert received is not None
    at_client = call(short_root / "c", "1")
    at_server = callers.answer("1")
    assert at_client is not None
    assert at_server is not None
    yield Pair(server, client, received[0], at_server, at_client)
    for port in (client, server):
        port.close()
    for end in (at_client, at_server, callers):
        end.close()


def test_the_client_speaks_over_it_once_it_was_heard_there(pair: Pair) -> None:
    pair.client.shorten(pair.at_client)
    pair.client.send([b"around"])
    assert pair.hear() == [b"around"]
    assert pair.at_server.receive() is None
    pair.at_server.send(b"first")
    assert pair.read() == [b"first"]
    pair.client.send([b"over it"])
    assert pair.at_server.receive() == b"over it"


def test_both_ways_short_messages_go_over_it_and_others_around_it(pair: Pair) -> None:
    pair.use()
    long, parts = [bytes(PACKET_BYTES + 1)], [b"header", b"values"]
    for message in ([b"short"], long, parts):
        pair.client.send(message)
        assert pair.hear() == message
        pair.server.send(pair.peer, message)
        assert pair.read() == message


def ended() -> PacketSocket:
    """Return one end of a shortcut whose other end is closed."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    second.close()
    first.setblocking(False)
    return PacketSocket(first)


def test_where_the_client_has_ended_it_all_goes_around_it(pair: Pair) -> None:
    pair.use()
    pair.client.shorten(ended())
    pair.server.send(pair.peer, [b"down"])
    assert pair.read() == [b"down"]
    pair.client.send([b"up"])
    assert pair.hear() == [b"up"]


def test_where_the_server_has_ended_it_all_goes_around_it(pair: Pair) -> None:
    pair.use()
    pair.server.shorten(pair.peer, ended())
    pair.client.send([b"up"])
    assert pair.hear() == [b"up"]
    pair.server.send(pair.peer, [b"down"])
    assert pair.read() == [b"down"]


def test_what_the_server_said_before_it_went_is_heard_by_who_speaks_first(pair: Pair) -> None:
    pair.use()
    pair.server.send(pair.peer, [b"finished"])
    pair.server.close()
    pair.client.send([b"a result that nobody needs"])
    assert pair.read() == [b"finished"]


def test_what_the_client_said_before_it_went_is_heard_by_who_speaks_first(pair: Pair) -> None:
    pair.use()
    pair.server.send(pair.peer, [b"unread"])
    pair.client.send([b"leave"])
    pair.client.close()
    with suppress(PeerGone):
        pair.server.send(pair.peer, [b"a lease"])
    assert pair.hear() == [b"leave"]


def test_what_is_left_on_one_is_heard_before_the_next(pair: Pair) -> None:
    pair.use()
    pair.server.send(pair.peer, [b"left"])
    pair.server.send(pair.peer, [b"over"])
    pair.client.shorten(None)
    assert [pair.read(), pair.read()] == [[b"left"], [b"over"]]


def test_without_another_all_goes_around_and_in_order(pair: Pair) -> None:
    pair.use()
    pair.client.shorten(None)
    parts, result = [b"part", bytes(1000)], [b"result"]
    for message in (parts, result) * 20:
        with suppress(PeerSlow):
            pair.client.send(message)
            assert pair.hear() == message
    pair.server.send(pair.peer, [b"down"])
    assert pair.read() == [b"down"]


def test_who_is_cut_has_no_shortcut_any_more(pair: Pair) -> None:
    pair.use()
    pair.server.cut(pair.peer)
    with pytest.raises(PeerGone):
        pair.at_client.receive()


def test_last_words_over_it_are_heard_before_the_end_is_told(pair: Pair) -> None:
    pair.use()
    for number in range(20):
        pair.client.send([bytes([number])])
    pair.client.close()
    while not pair.server._connections.has_ended():  # as a look at the connections between two messages may find
        pair.server._connections.poll()
    for number in range(20):
        assert pair.server.lost() == []
        assert pair.hear() == [bytes([number])]
    ended: list[bytes] = []
    while not ended:
        assert pair.server.receive(TIMEOUT_S) is None
        ended = pair.server.lost()
    assert ended == [pair.peer]


def test_who_talks_on_over_it_does_not_drown_the_others(pair: Pair) -> None:
    pair.use()
    other = dial(pair.server.address)
    other.send([b"hello"])
    word = b""
    for _ in range(100_000):
        with suppress(PeerSlow):
            pair.client.send([b"again"])
            pair.client.send([b"and again"])
        received = pair.server.receive(TIMEOUT_S)
        assert received is not None
        word = bytes(received[1][0])
        if word == b"hello":
            break
    assert word == b"hello"
    # He has not been silent meanwhile.
    assert pair.server.receive(0.0) is not None
    other.close()


def test_a_peer_that_does_not_read_is_slow(pair: Pair) -> None:
    pair.use()
    with suppress(PeerSlow):
        for _ in range(2000):
            pair.server.send(pair.peer, [bytes(1000)])
    with pytest.raises(PeerSlow):
        pair.server.send(pair.peer, [bytes(1000)])


def test_a_later_one_takes_its_place(pair: Pair, short_root: Path) -> None:
    pair.use()
    callers = Callers.at(short_root / "d")
    assert callers is not None
    at_client = call(short_root / "d", "2")
    at_server = callers.answer("2")
    assert at_client is not None
    assert at_server is not None
    pair.client.shorten(at_client)
    pair.server.shorten(pair.peer, at_server)
    pair.server.send(pair.peer, [b"down"])
    assert pair.read() == [b"down"]
    pair.client.send([b"up"])
    assert pair.hear() == [b"up"]
    with pytest.raises(PeerGone):
        pair.at_client.receive()
    callers.close()


def test_what_comes_over_it_ends_the_wait_for_several_ports(pair: Pair) -> None:
    pair.use()
    pair.client.send([b"up"])
    wait_for_any([pair.server], TIMEOUT_S)
    assert pair.hear() == [b"up"]
    pair.server.send(pair.peer, [b"down"])
    wait_for_any([pair.client], TIMEOUT_S)
    assert pair.read() == [b"down"]
