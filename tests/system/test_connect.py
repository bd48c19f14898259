"""What is in the way of a connection is told apart, without a long wait, by the doctor and by a worker's own words."""

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lockstep.checking import doctor_connection as connection
from lockstep.cli.main import run
from lockstep.common.protocol.messages import PROTOCOL_VERSION
from lockstep.common.transport.zeromq.client import TIMEOUT_S
from tests.architecture.source import ROOT
from tests.system.jobs import BRIEF
from tests.system.kernels import other_kernel
from tests.system.processes import Place

#: Seconds within which the doctor tells it, as the docs promise: of waiting, whatever a busy machine adds.
TOLD_S = 10.0


class Scene:
    """A server that can, or cannot, be reached in one way."""

    def __init__(self, place: Place, exits: ExitStack) -> None:
        self.place, self.exits = place, exits

    def serve(self, *flags: str, environ: dict[str, str] | None = None) -> str:
        server = self.place.start(
            *("server", *BRIEF, "--bind", "tcp://127.0.0.1:0", "--run-dir", "run", "--min-workers", "9", *flags),
            environ=environ,
        )
        return server.line_with("lockstep worker").split()[2]

    def good(self) -> tuple[str, ...]:
        return (self.serve(),)

    def good_with_key(self) -> tuple[str, ...]:
        assert run(["keys", "create", "keys"]) == 0
        return (self.serve("--keys", "keys"), "--key", "keys/worker-1.key")

    def name(self) -> tuple[str, ...]:
        return ("tcp://no-such-host.invalid:5555",)

    def route(self) -> tuple[str, ...]:
        # No connection leads to everybody.
        return ("tcp://255.255.255.255:5555",)

    def port(self) -> tuple[str, ...]:
        # Bound and not listening: the port is ours, and connections are refused.
        bound = self.exits.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        return (f"tcp://127.0.0.1:{bound.getsockname()[1]}",)

    def firewall(self) -> tuple[str, ...]:
        # A queue that is full drops what would come next, as a firewall does.
        listening = self.exits.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            filling = self.exits.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listening.getsockname())
        return (f"tcp://127.0.0.1:{listening.getsockname()[1]}",)

    def service(self) -> tuple[str, ...]:
        # It takes connections and says nothing.
        listening = self.exits.enter_context(socket.create_server(("127.0.0.1", 0)))
        return (f"tcp://127.0.0.1:{listening.getsockname()[1]}",)

    def key(self) -> tuple[str, ...]:
        assert run(["keys", "create", "keys"]) == run(["keys", "create", "others"]) == 0
        return (self.serve("--keys", "keys"), "--key", "others/worker-1.key")

    def no_key(self) -> tuple[str, ...]:
        assert run(["keys", "create", "keys"]) == 0
        return (self.serve("--keys", "keys"),)

    def version(self) -> tuple[str, ...]:
        copied = self.place.folder / "other"
        shutil.copytree(ROOT / "lockstep", copied / "lockstep", ignore=shutil.ignore_patterns("mnist", "__pycache__"))
        messages = copied / "lockstep" / "common" / "protocol" / "messages.py"
        ours = f"PROTOCOL_VERSION = {PROTOCOL_VERSION}"
        text = messages.read_text()
        assert ours in text
        messages.write_text(text.replace(ours, "PROTOCOL_VERSION = 9999"))
        return (self.serve(environ={"PYTHONPATH": str(copied)}),)

    def numerics(self) -> tuple[str, ...]:
        kernel = other_kernel()
        if kernel is None:
            pytest.skip("the BLAS here has no other kernel that works")
        return (self.serve("--set", "numerics=native", environ={"OPENBLAS_CORETYPE": kernel}),)


@pytest.fixture
def scene(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.chdir(place.folder)
    with ExitStack() as exits:
        yield Scene(place, exits)


#: Scene -> words of the finding that a worker says as well, and of what to do.
OBSTACLES = {
    "name": ("is not known here", "correct the name"),
    "route": ("cannot be reached", "ip route get ADDRESS"),
    "port": ("nothing listens at", "--bind is not 127.0.0.1"),
    "firewall": ("check the firewalls in between", "allow inbound TCP"),
    "service": ("is not a Lockstep server", "compare the port"),
    "key": ("breaks off the handshake", "pass --key"),
    "no_key": ("requires a key", "pass --key"),
    "version": (f"speaks protocol {PROTOCOL_VERSION}, the server 9999", "install the same version"),
    "numerics": ("the numerics of host", "compare `lockstep doctor --report` of both machines"),
}


#: What a worker finds out by itself: whatever else there is, is the answer of a server, which may be busy.
FOUND_ALONE = ("name", "route", "port", "firewall", "service")


@pytest.mark.parametrize("name", OBSTACLES)
def test_each_obstacle_is_told_apart(scene: Scene, capsys: pytest.CaptureFixture[str], name: str) -> None:
    words, fix = OBSTACLES[name]
    asked = getattr(scene, name)()
    capsys.readouterr()
    worker = scene.place.start("worker", *asked)
    assert run(["doctor", "--connect", *asked, "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["group"] == "connection"
    assert words in finding["what"]
    assert fix in finding["fix"]
    # It never waits for a server without a word of what it knows.
    assert words in worker.error_with("waiting for a server" if name in FOUND_ALONE else words)


def test_the_doctor_waits_for_no_longer_than_it_may() -> None:
    # For an answer, with a look at what prevents it that begins just before the end: a connection, and a greeting.
    assert connection.TIMEOUT_S + 2 * TIMEOUT_S <= TOLD_S


@pytest.mark.parametrize("name", ["good", "good_with_key"])
def test_a_good_way_has_no_finding_and_the_run_is_left_alone(
    scene: Scene, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    asked = getattr(scene, name)()
    capsys.readouterr()
    assert run(["doctor", "--connect", *asked]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{asked[0]}: run 'run' would admit a worker of this machine: no findings"
    assert scene.place.pids("lockstep server")
    flags = asked[1:]
    assert run(["status", asked[0], *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workers"] == []
