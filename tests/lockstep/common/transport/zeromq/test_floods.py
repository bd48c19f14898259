"""What dishonest peers send by hand: each is cut off and told of, and an honest one is heard."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import repeat

import pytest

from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.auth.credentials import Lock, ServerKeys
from lockstep.common.transport.auth.curve import HANDSHAKE_MS, new_pair
from lockstep.common.transport.limits import IngressQuota, RejectionLog
from lockstep.common.transport.port import Limits, PeerSlow
from lockstep.common.transport.zeromq.ports import dial, serve
from lockstep.common.transport.zeromq.server import CHECK_S, ZeroMqServer
from tests.lockstep.common.transport.zeromq import zmtp

LIMITS = Limits(frame_bytes=2**20, frames=4, backlog=2)


@dataclass
class Scene:
    """A server, and attackers in threads of their own."""

    lock: Lock = None
    rejections: RejectionLog = field(default_factory=RejectionLog)
    stack: ExitStack = field(default_factory=ExitStack)
    attackers: list[threading.Thread] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server: ZeroMqServer = self.stack.enter_context(
            closing(serve("tcp://127.0.0.1:0", lock=self.lock, limits=LIMITS, rejections=self.rejections))
        )

    def attack(self, attempt: Callable[[str], None]) -> None:
        self.attackers.append(threading.Thread(target=attempt, args=(self.server.address,)))
        self.attackers[-1].start()

    def serve_until_over(self) -> list[bytes]:
        """Serve until all attackers are done; return what was heard."""
        clock, heard = SystemClock(), list[bytes]()
        end = clock.now() + zmtp.TIMEOUT_S
        while any(attacker.is_alive() for attacker in self.attackers):
            assert clock.now() < end, "an attacker is still at it"
            if received := self.server.receive(CHECK_S):
                heard.append(bytes(received[1][0]))
            self.told += self.rejections.due(clock.now())
            self.server.lost()
        return heard

    def hears_an_honest_one(self) -> bool:
        with closing(dial(self.server.address, limits=LIMITS)) as client:
            clock = SystemClock()
            end = clock.now() + zmtp.TIMEOUT_S
            while clock.now() < end:
                with suppress(PeerSlow):  # what it says while its host is not let in may be lost
                    client.send([b"honest"])
                if (received := self.server.receive(CHECK_S)) and bytes(received[1][0]) == b"honest":
                    return True
        return False


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    with scene.stack:
        yield scene
        for attacker in scene.attackers:
            attacker.join(zmtp.TIMEOUT_S)


def say_nothing(address: str) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(zmtp.connected(address)) for _ in range(50)]
        assert all(zmtp.is_closed(connection) for connection in connections)


def begin_a_handshake(address: str) -> None:
    with zmtp.connected(address) as connection:
        connection.sendall(zmtp.greeting(b"NULL")[:40])
        assert zmtp.is_closed(connection)


def send_garbage(address: str) -> None:
    with zmtp.connected(address) as connection:
        zmtp.send_all(connection, repeat(b"GET / HTTP/1.1\r\nHost: lockstep\r\n\r\n", 100))
        assert zmtp.is_closed(connection)


def send_a_long_frame(address: str) -> None:
    with zmtp.shaken(address) as connection:
        # Its length alone: nothing of it has to be sent for it to be refused.
        connection.sendall(bytes([zmtp.LONG]) + (2**62).to_bytes(8, "big"))
        assert zmtp.is_closed(connection)


def send_many_frames(address: str) -> None:
    with zmtp.shaken(address) as connection:
        zmtp.send_all(connection, [zmtp.message([b""] * 100_000)])
        assert zmtp.is_closed(connection)


def send_a_message_without_end(address: str) -> None:
    piece = zmtp.frame(bytes(2**20), zmtp.MORE)
    with zmtp.shaken(address) as connection:
        most = 20 * IngressQuota(LIMITS).allowance
        assert zmtp.send_until_closed(connection, piece, most) < most
        assert zmtp.is_closed(connection)


@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        (send_many_frames, "disconnected a peer: its message has more than 4 frames"),
        (send_a_message_without_end, "its message exceeds"),
    ],
)
def test_an_attacker_is_cut_off_and_told_of(scene: Scene, attempt: Callable[[str], None], told: str) -> None:
    scene.attack(attempt)
    assert scene.serve_until_over() == []
    assert told in scene.told[0]
    assert scene.hears_an_honest_one()


@pytest.mark.parametrize("attempt", [send_a_long_frame, send_garbage])
def test_what_is_no_message_ends_its_connection(scene: Scene, attempt: Callable[[str], None]) -> None:
    scene.attack(attempt)
    assert scene.serve_until_over() == []
    assert scene.hears_an_honest_one()


@pytest.mark.parametrize(
    ("lock", "mechanism", "told"),
    [
        (None, b"CURVE", "it has a key, although this server has none"),
        (ServerKeys(new_pair(), dict), b"NULL", "it has no key"),
    ],
    ids=["server without keys", "server with keys"],
)
def test_only_what_is_true_of_this_server_is_reported(lock: Lock, mechanism: bytes, told: str) -> None:
    def greet(address: str) -> None:
        with zmtp.connected(address) as connection:
            connection.sendall(zmtp.greeting(mechanism))
            assert zmtp.is_closed(connection)

    scene = Scene(lock)
    with scene.stack:
        scene.attack(greet)
        assert scene.serve_until_over() == []
        # The connection's end may be reported after the attacker saw it.
        scene.server.receive(CHECK_S)
        scene.told += scene.rejections.due(float("inf"))
    # Before the reason is the host, if the server could still ask for it.
    assert [line.partition(": ")[2] for line in scene.told] == [told]


def test_a_handshake_has_some_seconds(scene: Scene) -> None:
    clock = SystemClock()
    began = clock.now()
    scene.attack(say_nothing)
    scene.attack(begin_a_handshake)
    assert scene.serve_until_over() == []
    assert clock.now() - began > HANDSHAKE_MS / 1000.0 - 1.0
    assert "its handshake did not complete" in scene.told[0]
    assert scene.rejections.count == 51
    assert scene.hears_an_honest_one()


def test_one_that_sends_much_and_whole_messages_is_let_be(scene: Scene) -> None:
    def send_whole_messages(address: str) -> None:
        with zmtp.shaken(address) as connection:
            count = 2 * IngressQuota(LIMITS).allowance // 2**20
            assert zmtp.send_all(connection, repeat(zmtp.message([bytes(2**20)]), count)) == count

    scene.attack(send_whole_messages)
    assert len(scene.serve_until_over()) > IngressQuota(LIMITS).allowance // 2**20
    assert scene.rejections.count == 0


def test_a_server_that_does_not_listen_for_a_while_holds_nothing_against_honest_ones(scene: Scene) -> None:
    """What waits of an honest one is bounded by the backlog and the system, whatever it would send."""
    done = threading.Event()

    def send_as_much_as_it_can(address: str) -> None:
        with zmtp.shaken(address) as connection:
            connection.settimeout(0.5)
            zmtp.send_all(connection, repeat(zmtp.message([bytes(2**20)]), 1000))
            done.set()
            assert zmtp.is_closed(connection)

    scene.attack(send_as_much_as_it_can)
    assert done.wait(zmtp.TIMEOUT_S)
    for _ in range(3):
        assert scene.server.receive(zmtp.TIMEOUT_S) is not None
    assert scene.rejections.count == 0
    scene.server.close()
