"""Who may take part and who may not, at a whole server with keys: each is refused within five seconds, and told of by
name to the person there."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import zmq

from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Join, Ready, Refused, ServerMessage, Welcome
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.auth.credentials import ClientKeys, Credential, ServerKeys, Token
from lockstep.common.transport.auth.curve import new_pair
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import ClientPort
from lockstep.common.transport.zeromq.ports import dial, serve
from lockstep.launch.serve import open_server
from lockstep.ps.records.recorder import Setting
from lockstep.ps.server.factory import ServerContext
from lockstep.ps.server.server import Server
from lockstep.ps.setup import open_run
from lockstep.runs.session import Destination
from tests.lockstep.common.transport.passing import PassingPort
from tests.lockstep.common.transport.zeromq import zmtp
from tests.simulation.small import digits, job_of

#: Longest that a test waits until an attempt is refused and reported: only what hangs takes so long.
REFUSED_S = 60.0

#: Seconds that no test comes near.
PATIENCE_S = 30.0

SERVER, WORKER, STRANGER = new_pair(), new_pair(), new_pair()
GOOD = ClientKeys(WORKER, SERVER.public)

#: The worker that is in the run before anybody else comes.
JOIN = Join(protocol=PROTOCOL_VERSION, incarnation="live", host="first", pid=1, fingerprint=fingerprint())


def changed(**fields: object) -> Join:
    """Return the join of one more worker, with other fields."""
    return msgspec.structs.replace(JOIN, **{"incarnation": "more", "host": "second", **fields})


#: Makes an attempt at an address, and returns when it has come to nothing.
Attempt = Callable[[str], None]


def briefly(timeout_s: float | None) -> float:
    """Let the server never wait for long, so that we see at once what it did."""
    return 0.01 if timeout_s is None else min(timeout_s, 0.01)


@dataclass
class Gate:
    """A run that waits for workers, served over a socket with keys."""

    folder: Path
    #: Public keys that are let in; whatever looking them up raises.
    allowed: Callable[[], Mapping[str, str]] = field(default=lambda: {WORKER.public: "worker-1"})
    said: list[str] = field(default_factory=list)
    denials: RejectionLog = field(default_factory=RejectionLog)
    clock: SystemClock = field(default_factory=SystemClock)
    port: PassingPort = field(init=False)
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        lock = ServerKeys(SERVER, lambda: self.allowed())
        self.port = PassingPort(serve("tcp://127.0.0.1:0", lock=lock, rejections=self.denials), briefly)
        opening = open_run("gate", job_of(), digits(), RunOptions(min_workers=9))
        setting = Setting(transport="tcp", started=0.0)
        context = ServerContext(self.port, self.clock, self.said.append, rejections=self.denials)
        destination = Destination(folder=self.folder, options=opening.info.options)
        self.server, _ = open_server(opening, destination, setting, context)

    def serve_until(self, is_over: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
        """Serve until something has happened; tell whether it did within so many seconds."""
        end = self.clock.now() + within_s
        while not is_over() and self.clock.now() < end:
            self.server.step()
        return is_over()

    def has_said(self, expected: str) -> bool:
        return any(re.search(expected, line) for line in self.said)

    def suffer(self, attempt: Attempt, told: str) -> None:
        """Serve while an attempt is made, of which the person here is to be told in time."""
        one = threading.Thread(target=attempt, args=(self.port.address,))
        one.start()
        assert self.serve_until(lambda: self.has_said(told), REFUSED_S), self.said
        assert self.serve_until(lambda: not one.is_alive())

    def hosts(self) -> list[str]:
        """Return where those are who take part."""
        return [member.join.host for member in self.server.coordinator.membership.members.values()]

    def answer(self, client: ClientPort, join: Join) -> ServerMessage:
        """Let a client ask for a place; return the first answer that decides of it."""
        client.send(encode(join))
        answers: list[ServerMessage] = []

        def is_answered() -> bool:
            frames = client.receive(0.0)
            if frames is not None:
                message = decode(frames, ServerMessage)[0]
                answers.extend([message] if isinstance(message, Welcome | Refused) else [])
            return bool(answers)

        assert self.serve_until(is_answered), self.said
        return answers[0]

    def takes_in(self, join: Join) -> bool:
        """Tell whether a worker with the right key gets a place."""
        with closing(dial(self.port.address, credential=GOOD)) as client:
            return isinstance(self.answer(client, join), Welcome)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "run")
    with closing(gate.port), closing(gate.server.recorder), closing(dial(gate.port.address, credential=GOOD)) as first:
        welcome = gate.answer(first, JOIN)
        assert isinstance(welcome, Welcome)
        # Until it is ready, its incarnation may dial again: the welcome may have gone down with the connection before.
        first.send(encode(Ready(rank=welcome.rank, part=welcome.part)))
        assert gate.serve_until(lambda: bool(gate.server.coordinator.membership.ready())), gate.said
        yield gate


def asks(credential: Credential, join: Join) -> Attempt:
    """Return what asks for a place, as our own workers do, and is given none."""

    def attempt(address: str) -> None:
        with closing(dial(address, credential=credential)) as client:
            client.send(encode(join))
            frames = client.receive(0.5)
            assert frames is None or isinstance(decode(frames, ServerMessage)[0], Refused)

    return attempt


def asks_by(mechanism: bytes) -> Attempt:
    """Return what goes on by hand as if it had been let in by another mechanism."""

    def attempt(address: str) -> None:
        with zmtp.connected(address) as connection:
            join = [bytes(frame) for frame in encode(changed())]
            connection.sendall(zmtp.greeting(mechanism) + zmtp.READY + zmtp.message(join))
            assert zmtp.is_closed(connection)

    return attempt


def asks_with_a_password(address: str) -> None:
    """As a stranger's own program does, by ZeroMQ's PLAIN."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.plain_username, dealer.plain_password = b"worker-1", b"secret"
        dealer.connect(address)
        dealer.send_multipart([bytes(frame) for frame in encode(changed())])
        assert not dealer.poll(500)


#: Both ends of a handshake see that they do not agree, and whichever hangs up first has the word.
DISAGREE = (
    r"^refused (127\.0\.0\.1|a host that disconnected at once): "
    r"(it has no key|its handshake did not complete \(.*\): check its key)"
)

#: Each that is not to take part, and what the person at the server is told.
REFUSED: dict[str, tuple[Attempt, str]] = {
    "no key": (asks(None, changed()), DISAGREE),
    "unknown key": (
        asks(ClientKeys(STRANGER, SERVER.public), changed()),
        rf"^refused 127\.0\.0\.1: its key '{re.escape(STRANGER.public)}' is not admitted",
    ),
    "wrong server key": (
        asks(ClientKeys(WORKER, STRANGER.public), changed()),
        r"^refused 127\.0\.0\.1: it expects a server with another key",
    ),
    "NULL mechanism": (asks_by(b"NULL"), DISAGREE),
    "PLAIN mechanism": (asks_by(b"PLAIN"), DISAGREE),
    "PLAIN with a password": (asks_with_a_password, DISAGREE),
    "the token of a train": (asks(Token("a" * 64), changed()), DISAGREE),
    "CURVE without a handshake": (
        asks_by(b"CURVE"),
        r"^refused (127\.0\.0\.1|a host that disconnected at once): (it broke the|its) handshake",
    ),
    "a join of another run": (
        asks(GOOD, changed(run="another")),
        r"^refused a worker: a worker of host 'second' asks for run 'another': this is run 'gate'",
    ),
    "an incarnation that is there": (
        asks(GOOD, changed(incarnation="live")),
        r"^refused a worker: incarnation 'live' is worker 0 \(host first, pid 1\) already",
    ),
}


@pytest.mark.parametrize(("attempt", "told"), REFUSED.values(), ids=REFUSED)
def test_who_is_not_to_take_part_is_refused_in_time_and_told_of(gate: Gate, attempt: Attempt, told: str) -> None:
    gate.suffer(attempt, told)
    assert gate.hosts() == ["first"]
    assert gate.takes_in(changed(host="third"))


def test_the_right_key_takes_part_a_hundred_times_of_a_hundred(gate: Gate) -> None:
    assert all(gate.takes_in(changed(incarnation=f"life-{number}")) for number in range(100))
    assert not gate.has_said("refused")


def _die() -> Mapping[str, str]:
    raise SystemExit  # which nothing catches: it ends the authenticator's thread


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_while_the_authenticator_is_dead_nobody_takes_part(gate: Gate) -> None:
    gate.allowed = _die
    has_died = r"^refused 127\.0\.0\.1: the authenticator has died \(SystemExit\).*: restart the server"
    gate.suffer(asks(GOOD, changed()), has_died)
    # The server's own key as well, which no list is looked up for.
    gate.suffer(asks(ClientKeys(SERVER, SERVER.public), changed()), r"its handshake did not complete")
    assert gate.hosts() == ["first"]
