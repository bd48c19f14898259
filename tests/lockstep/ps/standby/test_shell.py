"""A standby's shell: what it is sent reaches its state, and what that decides is sent, said and written."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.errors import Diagnosis, FailureKind, ProtocolError, RemoteProtocolError, Stage
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    Dropped,
    Eviction,
    Leave,
    Message,
    NotLeading,
    Ping,
    Refused,
    StandbyAddress,
    Term,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.standby_messages import (
    FilePart,
    FilePartRequest,
    LeaderNotice,
    LeaderRequest,
    MirrorRequest,
    Promote,
    RunFile,
    RunFiles,
    StandbyMessage,
    ToStandbyMessage,
)
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.statemachine.client import Exit
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.transport.in_memory import MemoryClient, MemoryNetwork, MemoryServer
from lockstep.common.transport.port import ClientPort, Limits, ServerPort
from lockstep.ps.standby.mirror import CONTENTS, MIRROR, Mirror
from lockstep.ps.standby.shell import StandbyShell
from lockstep.ps.standby.state import FOLLOWS, POLL_S, RETRY_S, StandbyState, TakeOver

TERM = Term(run="r", number=4, server="s")
OWN, OTHER = StandbyAddress(address="memory://b"), StandbyAddress(address="memory://c", public="key")
TEXT = b"hello"
FILE = RunFile(name="receipt.json", size=5, digest=hashlib.sha256(TEXT).hexdigest())


def offer(*files: RunFile, standbys: tuple[StandbyAddress, ...] = ()) -> RunFiles:
    return RunFiles(
        term=TERM,
        run="r",
        step=3,
        steps=9,
        checkpoint=0,
        files=[*files],
        electors=[0],
        standbys=standbys,
        options=RunOptions(),
    )


class PromptServer(MemoryServer):
    """A port at which nobody waits: while one is waited for, the other would not be heard."""

    def receive(self, timeout_s: float | None) -> tuple[bytes, list[memoryview]] | None:
        assert timeout_s == 0.0
        return super().receive(timeout_s)


class PromptClient(MemoryClient):
    """As above, of a client."""

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        assert timeout_s == 0.0
        return super().receive(timeout_s)


@dataclass
class Bench:
    """A standby, and by hand the server that it mirrors."""

    folder: Path
    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(1))
    clock: ManualClock = field(default_factory=ManualClock)
    said: list[str] = field(default_factory=list)
    dialled: list[tuple[str, str]] = field(default_factory=list)
    waited: list[float | None] = field(default_factory=list)
    checked: int = 0
    #: What comes while it waits.
    coming: Message | type[KeyboardInterrupt] | None = None

    def __post_init__(self) -> None:
        self.server, self.upstream = self.network.server(), self.network.client()
        self.own = self.network.server(OWN.address)
        self.upstream.__class__, self.own.__class__ = PromptClient, PromptServer
        search = LeaderSearch((StandbyAddress(address="memory://"),), OWN.address)
        request = MirrorRequest(protocol=PROTOCOL_VERSION, host="h", address=OWN.address)
        self.shell = StandbyShell(
            StandbyState(search, request, Mirror(self.folder)),
            self.own,
            self.upstream,
            self.dial,
            self.clock,
            self.said.append,
            self.wait,
            check=self.check,
        )

    def dial(self, address: str, public: str = "") -> ClientPort:
        self.dialled.append((address, public))
        return self.network.client(address)

    def check(self) -> None:
        self.checked += 1

    def wait(self, ports: Sequence[ServerPort | ClientPort], timeout_s: float | None) -> Sequence[int]:
        assert tuple(ports) == (self.shell.upstream, self.shell.port)
        self.waited.append(timeout_s)
        coming, self.coming = self.coming, None
        if coming is KeyboardInterrupt:
            raise KeyboardInterrupt
        if isinstance(coming, Message):
            self.server.send(self.peer(), encode(coming))
        return range(len(ports))

    def peer(self) -> bytes:
        (peer,) = self.server.connections
        return peer

    def send(self, message: ToStandbyMessage, data: bytes | None = None) -> list[Message]:
        """Send the standby a message, let it act, and return what it sends."""
        arrays = [] if data is None else [np.frombuffer(data + bytes(-len(data) % 4), "<f4")]
        self.server.send(self.peer(), encode(message, arrays))
        assert self.shell.step()
        return self.heard()

    def heard(self) -> list[Message]:
        messages = []
        while (received := self.server.receive(0.0)) is not None:
            messages.append(decode(received[1], StandbyMessage | Leave)[0])
        return messages

    def mirrored(self) -> None:
        self.send(offer(FILE))
        self.send(part(), TEXT)
        assert self.shell.state.mirror.held is not None


def asked(client: MemoryClient, bench: Bench, message: Message | bytes) -> list[Message]:
    """Ask the standby something; return what it answers."""
    client.send([message] if isinstance(message, bytes) else encode(message))
    assert bench.shell.step()
    answers = []
    while (frames := client.receive(0.0)) is not None:
        answers.append(decode(frames, LeaderNotice | NotLeading | Refused | Eviction)[0])
    return answers


def part() -> FilePart:
    return FilePart(name=FILE.name, digest=FILE.digest, start=0, size=len(TEXT))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_it_is_sent_is_written_and_it_checks_once_whether_it_could_lead(bench: Bench) -> None:
    request = FilePartRequest(name=FILE.name, digest=FILE.digest, start=0)
    assert bench.send(offer(FILE)) == [request]
    assert (bench.checked, bench.send(part(), TEXT), bench.checked) == (0, [], 1)
    assert (bench.folder / FILE.name).read_bytes() == TEXT
    bench.send(offer(FILE))
    assert bench.checked == 1


@pytest.mark.parametrize(
    ("message", "ended"),
    [
        (
            Refused(reason="other key"),
            Exit(code=2, reason="the server refused this standby: other key", kind=FailureKind.REFUSED),
        ),
        (NotLeading(state="silent", reason="no"), None),
        (LeaderNotice(term=TERM, address="memory://c"), None),
    ],
)
def test_what_its_server_says_reaches_its_state(bench: Bench, message: ToStandbyMessage, ended: Exit | None) -> None:
    bench.send(message)
    assert bench.shell.ended == ended


def test_nonsense_of_its_server_ends_it_with_what_is_wrong_with_it(bench: Bench) -> None:
    with pytest.raises(RemoteProtocolError) as wrong:
        decode([memoryview(b"\xc1")], ToStandbyMessage)
    bench.server.send(bench.peer(), [b"\xc1"])
    bench.shell.step()
    assert isinstance(bench.shell.ended, Exit)
    assert (bench.shell.ended.code, bench.shell.ended.kind) == (1, FailureKind.PROTOCOL)
    assert bench.shell.ended.reason == f"the server broke the protocol: {wrong.value}"


def test_who_asks_is_answered_and_nonsense_is_refused(bench: Bench) -> None:
    bench.mirrored()
    client = bench.network.client(OWN.address)
    assert asked(client, bench, LeaderRequest()) == [LeaderNotice(term=TERM, address="memory://")]
    # One that takes it for the server that was here before finds the one that leads.
    dropped = Dropped(number=1)
    assert [asked(client, bench, message) for message in (Ping(), dropped)] == [[Eviction(reason=FOLLOWS)]] * 2
    (refused,) = asked(client, bench, b"\xc1")
    assert isinstance(refused, Refused)
    assert refused.reason.startswith("this is a standby, which does not lead the run: ")


def test_a_connection_that_is_gone_counts_no_more(bench: Bench) -> None:
    bench.mirrored()
    client = bench.network.client(OWN.address)
    asked(client, bench, Ping())
    claims = bench.shell.state.claims.by_peer
    claims[next(iter(bench.own.connections))] = claims[b"other"] = None  # type: ignore[assignment]
    client.close()
    assert bench.shell.step()
    assert list(claims) == [b"other"]
    assert not bench.shell.step()


def test_it_waits_until_it_has_something_to_do_or_something_comes(bench: Bench) -> None:
    bench.mirrored()
    bench.shell.rejections.record("a stranger")
    bench.waited.clear()
    bench.said.clear()
    bench.clock.advance(POLL_S / 4)
    assert not bench.shell.step()
    assert bench.waited == [0.75 * POLL_S]
    assert bench.said == ["a stranger"]
    bench.coming = offer()
    assert bench.shell.step()
    bench.clock.advance(POLL_S)
    assert bench.shell.step()
    (request,) = bench.heard()
    assert isinstance(request, MirrorRequest)
    assert len(bench.waited) == 2


def test_what_prevents_a_connection_is_looked_for_until_a_server_answers(bench: Bench) -> None:
    bench.clock.advance(1.0)
    bench.shell.step()
    assert bench.said == []
    bench.upstream.obstacle = Diagnosis("nothing listens there", Stage.PORT)
    bench.clock.advance(RETRY_S)
    bench.shell.step()
    assert bench.said == ["waiting for a server at memory://: nothing listens there"]
    bench.upstream.obstacle = Diagnosis("it does not admit the key", Stage.KEY, is_final=True)
    bench.mirrored()
    bench.clock.advance(POLL_S)
    assert bench.shell.step()
    assert bench.shell.ended is None
    bench.heard()
    bench.shell.state.offer = None
    bench.clock.advance(RETRY_S)
    bench.shell.step()
    assert bench.shell.ended == Exit(code=2, reason="it does not admit the key", kind=FailureKind.UNREACHABLE)


def test_each_key_that_the_server_may_have_is_tried_and_the_right_one_says_what_is_wrong(bench: Bench) -> None:
    key = StandbyAddress(address="memory://", public="key")
    bench.shell.state.search.keyed = (key,)
    bench.upstream.obstacle = Diagnosis("its key is another", Stage.KEY, is_final=True, has_other_key=True)
    bench.clock.advance(RETRY_S)
    bench.shell.step()
    assert bench.dialled == [(key.address, key.public)]
    assert isinstance(bench.shell.upstream, MemoryClient)
    bench.shell.upstream.obstacle = Diagnosis("it does not admit the key", Stage.KEY, is_final=True)
    bench.clock.advance(RETRY_S)
    bench.shell.step()
    assert bench.shell.ended == Exit(code=2, reason="it does not admit the key", kind=FailureKind.UNREACHABLE)


def test_another_server_is_dialled_with_its_key_and_the_one_before_is_left(bench: Bench) -> None:
    bench.send(offer(standbys=(OWN, OTHER)))
    bench.send(NotLeading(state="silent", reason="no"))
    assert bench.dialled == [(OTHER.address, OTHER.public)]
    assert bench.server.connections == {}
    assert isinstance(bench.shell.upstream, MemoryClient)
    assert bench.shell.upstream.address == OTHER.address


def test_a_server_that_reads_nothing_is_asked_again_later(bench: Bench) -> None:
    bench.mirrored()
    for _ in range(2 * Limits().queue):
        bench.clock.advance(RETRY_S)
        assert bench.shell.step()
    assert bench.shell.ended is None
    assert len(bench.heard()) == Limits().queue


def test_it_runs_until_the_run_is_over_and_leaves_its_ports(bench: Bench) -> None:
    bench.coming = msgspec.structs.replace(offer(FILE), files=[], state="over")
    partial = bench.folder / CONTENTS / "coming"
    partial.parent.mkdir()
    partial.write_bytes(b"{")
    assert bench.shell.run() == Exit(code=0, reason="")
    first, leave = bench.heard()
    assert isinstance(first, MirrorRequest)
    assert leave == Leave(reason="")
    assert not partial.exists()
    for port in (bench.upstream, bench.own):
        with pytest.raises(ProtocolError, match="this port is closed"):
            port.receive(0.0)


def test_a_run_that_is_over_with_a_result_is_one_here(bench: Bench) -> None:
    bench.mirrored()
    assert (bench.folder / MIRROR).exists()
    bench.coming = msgspec.structs.replace(offer(FILE), state="over")
    (bench.folder / "result.json").write_text("{}")
    assert bench.shell.run() == Exit(code=0, reason="")
    assert sorted(path.name for path in bench.folder.iterdir()) == [FILE.name, "result.json"]


def test_an_interrupt_ends_it(bench: Bench) -> None:
    bench.coming = KeyboardInterrupt
    assert bench.shell.run() == Exit(code=130, reason="interrupted", kind=FailureKind.INTERRUPTED)
    assert bench.heard()[1:] == [Leave(reason="interrupted")]


def test_the_mirror_that_it_leads_from_is_a_folder_of_a_run_and_its_ports_stay_open(bench: Bench) -> None:
    bench.send(offer(FILE))
    bench.send(part(), TEXT)
    client = bench.network.client(OWN.address)
    client.send(encode(Promote()))
    assert bench.shell.run() == TakeOver(number=5, reason="it was told to lead")
    assert sorted(path.name for path in bench.folder.iterdir()) == [FILE.name]
    assert bench.own.receive(0.0) is None
    assert bench.shell.upstream.receive(0.0) is None
