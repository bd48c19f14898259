"""What every transport promises, asked of all of them: in memory, over tcp, over ipc, over tcp with keys."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from lockstep.common.errors import ProtocolError
from lockstep.common.transport.auth.credentials import ClientKeys, Credential, Lock, ServerKeys
from lockstep.common.transport.auth.curve import new_pair
from lockstep.common.transport.in_memory import MemoryNetwork
from lockstep.common.transport.port import ClientPort, Frames, Limits, PeerGone, PeerSlow, ServerPort
from lockstep.common.transport.zeromq.ports import dial, serve
from tests.leftovers import LINUX_ONLY, nothing_left_open

#: Seconds that no test waits unless it fails.
PATIENCE_S = 20.0
LIMITS = Limits(frames=4, queue=16, backlog=8, frame_bytes=16 * 1024**2)


@dataclass
class Net:
    """One way of making the two ends; all of them are closed after the test."""

    make_server: Callable[[], ServerPort]
    make_client: Callable[[], ClientPort]

    def __post_init__(self) -> None:
        self._ports: list[ServerPort | ClientPort] = []

    def server(self) -> ServerPort:
        self._ports.append(port := self.make_server())
        return port

    def client(self) -> ClientPort:
        self._ports.append(port := self.make_client())
        return port

    def close(self) -> None:
        for port in self._ports:
            port.close()


def memory_net(folder: Path) -> Net:
    network = MemoryNetwork(seed=3, limits=LIMITS)
    return Net(network.server, network.client)


def ipc_net(folder: Path) -> Net:
    address = f"ipc://{folder}/s"
    return Net(lambda: serve(address, limits=LIMITS), lambda: dial(address, limits=LIMITS))


def tcp_net(folder: Path, lock: Lock = None, credential: Credential = None) -> Net:
    addresses = ["tcp://127.0.0.1:0"]

    def make_server() -> ServerPort:
        server = serve(addresses[-1], lock=lock, limits=LIMITS)
        addresses.append(server.address)
        return server

    def make_client() -> ClientPort:
        if len(addresses) == 1:
            # The system's choice of a port that is free, so that a client can have it before there is a server.
            make_server().close()
        return dial(addresses[-1], credential=credential, limits=LIMITS)

    return Net(make_server, make_client)


def keys_net(folder: Path) -> Net:
    server, worker = new_pair(), new_pair()
    return tcp_net(folder, ServerKeys(server, lambda: {worker.public: "worker-1"}), ClientKeys(worker, server.public))


@pytest.fixture(params=[memory_net, tcp_net, ipc_net, keys_net])
def net(request: pytest.FixtureRequest, short_root: Path) -> Iterator[Net]:
    made: Net = request.param(short_root)
    yield made
    made.close()


def hear(server: ServerPort) -> tuple[bytes, list[bytes]]:
    received = server.receive(PATIENCE_S)
    assert received is not None, "nothing came"
    peer, frames = received
    return peer, [bytes(frame) for frame in frames]


def read(client: ClientPort) -> list[bytes]:
    frames = client.receive(PATIENCE_S)
    assert frames is not None, "nothing came"
    return [bytes(frame) for frame in frames]


def heard_again(server: ServerPort, client: ClientPort) -> tuple[bytes, list[memoryview]]:
    """Return what a server hears of a client whose connection broke.

    What is sent as it breaks may be lost: so it is sent again, as a worker does.
    """
    client.send([b"again"])
    while (received := server.receive(0.2)) is None:
        client.send([b"again"])
    return received


def connected(net: Net) -> tuple[ServerPort, ClientPort, bytes]:
    """Return a server, a client of it, and the client's name there."""
    server, client = net.server(), net.client()
    client.send([b"hello"])
    peer, _ = hear(server)
    return server, client, peer


def send_until_slow(send: Callable[[Frames], None]) -> int:
    """Return how many messages were taken before there were too many."""
    for sent in count():
        try:
            send([sent.to_bytes(4, "big"), bytes(64 * 1024)])
        except PeerSlow:
            return sent
    raise AssertionError


def test_the_longest_frames_arrive_both_ways(net: Net) -> None:
    server, client, peer = connected(net)
    longest = bytes(LIMITS.frame_bytes)
    client.send([b"up", longest])
    assert hear(server) == (peer, [b"up", longest])
    server.send(peer, [b"down", longest])
    assert read(client) == [b"down", longest]


def test_frames_arrive_as_they_were_sent_and_the_answer_finds_its_way(net: Net) -> None:
    server, client, peer = connected(net)
    client.send([b"one", bytearray(b"two"), memoryview(b"three")])
    assert hear(server) == (peer, [b"one", b"two", b"three"])
    server.send(peer, [b"answer"])
    assert read(client) == [b"answer"]


def test_messages_of_one_connection_keep_their_order(net: Net) -> None:
    server, client, peer = connected(net)
    for number in range(LIMITS.queue // 2):
        client.send([bytes([number])])
        server.send(peer, [bytes([number])])
    expected = [[bytes([number])] for number in range(LIMITS.queue // 2)]
    assert [hear(server)[1] for _ in expected] == expected
    assert [read(client) for _ in expected] == expected


def test_many_clients_are_told_apart(net: Net) -> None:
    server = net.server()
    clients = [net.client() for _ in range(20)]
    for number, client in enumerate(clients):
        client.send([bytes([number])])
    peers = {frames[0]: peer for peer, frames in (hear(server) for _ in clients)}
    assert len(set(peers.values())) == len(clients)
    for name, peer in peers.items():
        server.send(peer, [b"you are ", name])
    assert [read(client) for client in clients] == [[b"you are ", bytes([n])] for n in range(len(clients))]


def test_empty_frames_are_frames(net: Net) -> None:
    server, client, peer = connected(net)
    client.send([b"", b"x", b""])
    assert hear(server)[1] == [b"", b"x", b""]
    server.send(peer, [b""])
    assert read(client) == [b""]


def test_a_big_frame_arrives_whole(net: Net) -> None:
    server, client, peer = connected(net)
    big = os.urandom(64) * (8 * 1024**2 // 64)
    client.send([b"header", big])
    assert hear(server)[1] == [b"header", big]
    server.send(peer, [big])
    assert read(client) == [big]


def test_the_sender_may_overwrite_its_buffers_at_once(net: Net) -> None:
    server, client, peer = connected(net)
    buffer = bytearray(b"\x01" * 200_000)
    client.send([buffer])
    server.send(peer, [memoryview(buffer)])
    buffer[:] = b"\x02" * len(buffer)
    assert set(hear(server)[1][0]) == {1}
    assert set(read(client)[0]) == {1}


def test_a_shared_frame_arrives_at_several_peers_as_it_was(net: Net) -> None:
    server, first, peer = connected(net)
    second = net.client()
    second.send([b"hello"])
    other, _ = hear(server)
    buffer = bytearray(b"\x01" * 200_000)
    shared = server.shared(memoryview(buffer))
    buffer[:] = b"\x02" * len(buffer)
    for each in (peer, other, peer):
        server.send(each, [b"header", shared])
    del shared
    for client in (first, second, first):
        header, frame = read(client)
        assert (header, len(frame), set(frame)) == (b"header", 200_000, {1})


def test_received_frames_are_read_only_and_outlive_the_next_message(net: Net) -> None:
    server, client, _ = connected(net)
    client.send([b"a" * 100_000])
    client.send([b"b" * 100_000])
    first = server.receive(PATIENCE_S)
    server.receive(PATIENCE_S)
    assert first is not None
    (frame,) = first[1]
    assert frame.readonly
    assert set(bytes(frame)) == {ord("a")}


@pytest.mark.parametrize("peer", [b"nobody", b"", b"\x00\x00\x00\x00\x00"])
def test_a_peer_that_was_never_heard_is_gone(net: Net, peer: bytes) -> None:
    server = net.server()
    with pytest.raises(PeerGone):
        server.send(peer, [b"x"])


def test_a_client_that_closed_is_gone(net: Net) -> None:
    server, client, peer = connected(net)
    client.close()

    def send_until_gone() -> None:
        for _ in range(10_000):
            with suppress(PeerSlow):
                server.send(peer, [b"x"])
            # Gives the transport the chance to see that the other end is closed.
            server.receive(0.01)

    with pytest.raises(PeerGone):
        send_until_gone()


def test_a_message_before_there_is_a_server_waits_for_it(net: Net) -> None:
    client = net.client()
    client.send([b"first"])
    client.send([b"second"])
    server = net.server()
    peer, frames = hear(server)
    assert frames == [b"first"]
    assert hear(server) == (peer, [b"second"])


def test_a_client_finds_the_next_server_under_a_new_name(net: Net) -> None:
    server, client, peer = connected(net)
    server.close()
    following = net.server()
    received = heard_again(following, client)
    following.send(received[0], [b"welcome back"])
    assert read(client) == [b"welcome back"]
    assert received[0] != peer


def test_a_peer_that_does_not_read_is_slow_and_misses_nothing_that_was_taken(net: Net) -> None:
    server, client, peer = connected(net)
    sent = send_until_slow(lambda frames: server.send(peer, frames))
    assert sent >= LIMITS.queue // 2
    assert [int.from_bytes(read(client)[0], "big") for _ in range(sent)] == list(range(sent))
    # Once it has read, it is no longer slow; over a socket this takes a moment to be known.
    for _ in range(10_000):
        try:
            server.send(peer, [b"more"])
            break
        except PeerSlow:
            server.receive(0.01)
    assert read(client) == [b"more"]


def test_a_server_that_does_not_read_is_slow(net: Net) -> None:
    server, client, _ = connected(net)
    sent = send_until_slow(client.send)
    assert [int.from_bytes(hear(server)[1][0], "big") for _ in range(sent)] == list(range(sent))


def test_more_may_wait_once_a_port_has_room_for_more(net: Net) -> None:
    server, client, _ = connected(net)
    address = server.address
    server.make_room(10 * LIMITS.queue)
    assert server.address == address
    peer, _ = heard_again(server, client)
    sent = send_until_slow(lambda frames: server.send(peer, frames))
    assert sent >= 5 * LIMITS.queue
    assert [int.from_bytes(read(client)[0], "big") for _ in range(sent)] == list(range(sent))


def test_no_fewer_may_wait_than_the_limits_say(net: Net) -> None:
    server, client, peer = connected(net)
    server.make_room(1)
    for number in range(LIMITS.queue // 2):
        server.send(peer, [bytes([number])])
    assert read(client) == [b"\0"]


def test_a_client_with_patience_finds_a_server_that_does_not_read_slow_too(net: Net) -> None:
    server, client, _ = connected(net)
    sent = send_until_slow(lambda frames: client.send(frames, 0.05))
    assert [int.from_bytes(hear(server)[1][0], "big") for _ in range(sent)] == list(range(sent))


def test_nothing_comes_within_the_time(net: Net) -> None:
    server, client, _ = connected(net)
    assert server.receive(0.0) is None
    assert server.receive(0.001) is None
    assert server.receive(-1.0) is None
    assert client.receive(0.001) is None


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], "a message of 0 frames: expected 1 to 4"),
        ([b""] * 5, "a message of 5 frames"),
        ([bytes(16 * 1024**2 + 1)], "a frame of 16777217 bytes: expected at most 16777216"),
    ],
    ids=["none", "many", "long"],
)
def test_what_a_peer_would_not_take_is_not_sent(net: Net, frames: Frames, text: str) -> None:
    server, client, peer = connected(net)
    with pytest.raises(ProtocolError, match=text):
        client.send(frames)
    with pytest.raises(ProtocolError, match=text):
        server.send(peer, frames)


def test_a_second_close_does_nothing_and_a_closed_port_is_of_no_use(net: Net) -> None:
    server, client, peer = connected(net)
    for port in (server, client, server, client):
        port.close()
    for use in (lambda: server.receive(0), lambda: client.receive(0), lambda: server.send(peer, [b""])):
        with pytest.raises(ProtocolError, match="this port is closed"):
            use()
    with pytest.raises(ProtocolError, match="this port is closed"):
        client.send([b""])


def test_a_closing_server_lets_its_last_words_out(net: Net) -> None:
    server, client, peer = connected(net)
    server.send(peer, [b"over", bytes(1024**2)])
    server.close(linger_s=PATIENCE_S)
    assert read(client)[0] == b"over"


def test_a_closing_client_lets_its_last_words_out(net: Net) -> None:
    server, client, _ = connected(net)
    client.send([b"bye", bytes(1024**2)])
    client.close(linger_s=PATIENCE_S)
    assert hear(server)[1][0] == b"bye"


@LINUX_ONLY
def test_closing_gives_all_file_descriptors_back(net: Net) -> None:
    connected(net)
    net.close()
    with nothing_left_open():
        for _ in range(3):
            server, client, peer = connected(net)
            server.send(peer, [b"hello"])
            client.close()
            server.close()


@LINUX_ONLY
def test_closing_gives_them_back_if_nobody_was_met(net: Net) -> None:
    net.server().close()
    with nothing_left_open():
        net.client().close()
        net.server().close()


def lost(server: ServerPort) -> list[bytes]:
    """Wait until a connection has ended."""
    for _ in range(10_000):
        assert server.receive(0.01) is None
        if peers := server.lost():
            return peers
    raise AssertionError("none was lost")


def test_the_end_of_a_connection_is_told_once_and_to_nobody_elses_cost(net: Net) -> None:
    server, client, peer = connected(net)
    other = net.client()
    other.send([b"hello"])
    other_peer, _ = hear(server)
    assert server.lost() == []
    client.close()
    assert lost(server) == [peer]
    assert server.receive(0.01) is None
    assert server.lost() == []
    server.send(other_peer, [b"still there"])
    assert read(other) == [b"still there"]


def test_who_is_cut_off_is_lost_and_may_dial_again_as_another(net: Net) -> None:
    server, client, peer = connected(net)
    other = net.client()
    other.send([b"hello"])
    other_peer, _ = hear(server)
    server.cut(peer)
    server.cut(b"nobody")
    assert lost(server) == [peer]
    server.send(other_peer, [b"still there"])
    assert read(other) == [b"still there"]
    for _ in range(10_000):
        with suppress(PeerSlow):  # over a network its host is not let in for a moment
            client.send([b"again"])
        if received := server.receive(0.01):
            break
    assert received is not None
    assert received[0] not in (peer, other_peer)


def test_last_words_are_heard_before_the_end_is_told(net: Net) -> None:
    server, client, peer = connected(net)
    for number in range(LIMITS.backlog // 2):
        client.send([bytes([number])])
    client.close(linger_s=PATIENCE_S)
    for number in range(LIMITS.backlog // 2):
        assert server.lost() == []
        assert hear(server) == (peer, [bytes([number])])
    assert lost(server) == [peer]


def test_who_comes_after_one_that_ended_is_not_taken_for_it(net: Net) -> None:
    server, client, peer = connected(net)
    for _ in range(20):
        client.close()
        client = net.client()  # over a socket it has the descriptor of the one before
        client.send([b"hello"])
        ended, heard = list[bytes](), list[bytes]()
        while not (ended and heard):
            if received := server.receive(PATIENCE_S):
                heard.append(received[0])
            ended += server.lost()
        (following,) = heard
        assert ended == [peer]
        server.send(following, [b"welcome"])
        assert read(client) == [b"welcome"]
        peer = following


def test_a_closed_server_loses_nobody(net: Net) -> None:
    server, _, _ = connected(net)
    server.close()
    with pytest.raises(ProtocolError, match="this port is closed"):
        server.lost()
