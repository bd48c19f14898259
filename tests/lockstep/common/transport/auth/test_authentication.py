"""Who gets in at a socket with keys, and what becomes of the authenticator; tests/system/test_authentication.py goes
through all who do not."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pytest
import zmq

from lockstep.common.errors import AddressError, KeyFileError
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.auth.credentials import DOMAIN, ClientKeys, Credential, Lock, ServerKeys, Token
from lockstep.common.transport.auth.curve import check_curve, new_pair, secure_server
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import Limits
from lockstep.common.transport.zeromq.client import ZeroMqClient, probe
from lockstep.common.transport.zeromq.ports import dial, serve
from lockstep.common.transport.zeromq.server import ZeroMqServer
from tests.lockstep.common.transport.zeromq import zmtp

#: Within these seconds of its attempt, one that is not let in is noted.
REFUSED_S = 5.0

SERVER, WORKER, STRANGER = new_pair(), new_pair(), new_pair()
GOOD = ClientKeys(WORKER, SERVER.public)


@dataclass
class Scene:
    """A server with keys, what it notes, and whoever dials."""

    lock: Lock = field(default_factory=lambda: ServerKeys(SERVER, lambda: {WORKER.public: "worker-1"}))
    rejections: RejectionLog = field(default_factory=RejectionLog)
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.server = self.stack.enter_context(
            closing(serve("tcp://127.0.0.1:0", lock=self.lock, rejections=self.rejections))
        )

    def dial(self, credential: Credential) -> ZeroMqClient:
        return self.stack.enter_context(closing(dial(self.server.address, credential=credential)))

    def refusals(self, within_s: float = REFUSED_S) -> list[str]:
        """Wait until a connection was refused, while no message may come; return what is told of it."""
        clock = SystemClock()
        end = clock.now() + within_s
        while not self.rejections.has_any() and clock.now() < end:
            assert self.server.receive(end - clock.now()) is None, "one was let in"
        return self.rejections.due(clock.now())


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    with scene.stack:
        yield scene


def gets_in(server: ZeroMqServer, client: ZeroMqClient) -> bool:
    """Tell whether a message comes through, and the answer."""
    client.send([b"hello"])
    clock = SystemClock()
    end = clock.now() + zmtp.TIMEOUT_S
    # It may return sooner: others end, or are refused.
    while (received := server.receive(end - clock.now())) is None and clock.now() < end:
        server.lost()
    if received is None or bytes(received[1][0]) != b"hello":
        return False
    server.send(received[0], [b"welcome"])
    answer = client.receive(zmtp.TIMEOUT_S)
    return answer is not None and bytes(answer[0]) == b"welcome"


@pytest.mark.parametrize("major", [0, 1, 2])
def test_an_old_protocol_that_knows_no_keys_is_no_way_in(scene: Scene, major: int) -> None:
    with zmtp.connected(scene.server.address) as connection:
        connection.sendall(b"\xff" + bytes(8) + b"\x7f" + bytes([major, 0]) + zmtp.message([b"", b"hello"]) * 4)
        assert scene.server.receive(0.5) is None
        assert zmtp.is_closed(connection)


def test_a_frame_that_is_encrypted_may_be_as_long_as_any_other() -> None:
    limits = Limits(frame_bytes=1000)
    with (
        closing(serve("tcp://127.0.0.1:0", lock=ServerKeys(SERVER, dict), limits=limits)) as server,
        closing(dial(server.address, credential=ClientKeys(SERVER, SERVER.public), limits=limits)) as client,
    ):
        client.send([bytes(1000)])
        received = server.receive(zmtp.TIMEOUT_S)
        assert received is not None
        server.send(received[0], [bytes(1000)])
        assert client.receive(zmtp.TIMEOUT_S) is not None


def test_who_has_the_servers_own_key_gets_in(scene: Scene) -> None:
    assert gets_in(scene.server, scene.dial(ClientKeys(SERVER, SERVER.public)))


def test_a_worker_speaks_with_no_other_server_than_its_own() -> None:
    scene = Scene(ServerKeys(STRANGER, lambda: {WORKER.public: "worker-1"}))
    with scene.stack:
        client = scene.dial(GOOD)
        client.send([b"hello"])
        assert "it expects a server with another key" in scene.refusals()[0]
        assert client.receive(0.1) is None
        # It has broken off the handshake by itself.
        assert scene.rejections.count == 0


def test_a_port_that_was_only_tried_counts_as_no_refusal_and_an_unknown_key_does(scene: Scene) -> None:
    with ThreadPoolExecutor(1) as pool:
        tried = pool.submit(probe, scene.server.address)
        assert "unless it only tried the port" in scene.refusals()[0]
        assert (tried.result(zmtp.TIMEOUT_S), scene.rejections.count) == ("CURVE", 0)
    scene.dial(ClientKeys(STRANGER, SERVER.public)).send([b"hello"])
    assert "is not admitted" in scene.refusals()[0]
    assert scene.rejections.count > 0


def _die() -> Mapping[str, str]:
    raise SystemExit  # which nothing catches: it ends the authenticator's thread


def _fail() -> Mapping[str, str]:
    raise KeyFileError("the list 'allowed' cannot be read")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_authenticator_lets_nobody_in() -> None:
    scene = Scene(ServerKeys(SERVER, _die))
    with scene.stack:
        first = scene.dial(GOOD)
        assert scene.server.authenticator is not None
        scene.server.authenticator.thread.join(zmtp.TIMEOUT_S)
        assert not scene.server.authenticator.thread.is_alive()
        for client in (first, scene.dial(GOOD), scene.dial(ClientKeys(SERVER, SERVER.public))):
            client.send([b"hello"])
        assert "the authenticator has died (SystemExit)" in scene.refusals()[0]
        assert scene.server.receive(1.0) is None


def test_a_socket_without_an_authenticator_lets_nobody_in() -> None:
    """What `serve` sets on its socket is enough by itself: nothing is open before the authenticator is there."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        secure_server(router, ServerKeys(SERVER, dict))
        router.bind("tcp://127.0.0.1:0")
        address = router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        with closing(dial(address, credential=GOOD)) as client:
            client.send([b"hello"])
            assert not router.poll(1000)


def test_a_list_that_cannot_be_read_lets_nobody_in_and_says_so() -> None:
    scene = Scene(ServerKeys(SERVER, _fail))
    with scene.stack:
        scene.dial(GOOD).send([b"hello"])
        assert "no client is admitted: the list 'allowed' cannot be read" in scene.refusals()[0]


def test_one_that_was_revoked_is_let_in_no_more_and_one_that_was_added_is() -> None:
    allowed = {WORKER.public: "worker-1"}
    scene = Scene(ServerKeys(SERVER, lambda: allowed))
    with scene.stack:
        assert gets_in(scene.server, scene.dial(GOOD))
        del allowed[WORKER.public]
        allowed[STRANGER.public] = "worker-2"
        scene.dial(GOOD).send([b"hello"])
        assert "is not admitted" in scene.refusals()[0]
        assert gets_in(scene.server, scene.dial(ClientKeys(STRANGER, SERVER.public)))


@pytest.mark.parametrize("credential", [None, Token("b" * 64), GOOD], ids=["none", "other", "key"])
def test_a_token_is_asked_for_where_there_is_one(credential: Credential) -> None:
    scene = Scene(Token("a" * 64))
    with scene.stack:
        scene.dial(credential).send([b"hello"])
        assert len(scene.refusals()) == 1
        assert gets_in(scene.server, scene.dial(Token("a" * 64)))


def test_the_domain_is_ours_and_asked_for() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        secure_server(router, ServerKeys(SERVER, dict))
        assert router.getsockopt_string(zmq.ZAP_DOMAIN).rstrip("\0") == DOMAIN.decode()
        assert router.get(zmq.ZAP_ENFORCE_DOMAIN) == 1


def test_a_zeromq_without_keys_is_told_with_the_cure() -> None:
    with pytest.raises(KeyFileError) as caught:
        check_curve(lambda feature: feature != "curve")
    assert str(caught.value) == (
        f"this ZeroMQ ({zmq.zmq_version()}) was built without CURVE and cannot use keys: expected one with "
        "libsodium, as in the wheels of pyzmq (pip install --force-reinstall --only-binary pyzmq pyzmq)"
    )


def test_secrets_are_not_shown() -> None:
    shown = repr((SERVER, GOOD, ServerKeys(SERVER, dict), Token("a" * 64)))
    assert SERVER.secret not in shown
    assert WORKER.secret not in shown
    assert "aaaa" not in shown


def test_keys_allow_an_address_that_is_open_to_others() -> None:
    with closing(serve("tcp://0.0.0.0:0", lock=ServerKeys(SERVER, dict))):
        pass
    with pytest.raises(AddressError, match=r"make keys \(`lockstep keys create keys`\) and add --keys keys"):
        serve("tcp://0.0.0.0:0")
