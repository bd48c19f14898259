"""What only sockets can get wrong: addresses, files, signals, and peers that do not keep the limits."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType

import pytest
import zmq

from lockstep.common.errors import AddressError
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.port import Limits, PeerSlow
from lockstep.common.transport.zeromq.ports import dial, serve
from tests.lockstep.common.transport.zeromq import zmtp

TIMEOUT_S = 20.0

#: How often something is sent that may be lost.
TRIES = 20


class _InterruptedError(Exception):
    """Raised by a signal handler."""


@pytest.fixture
def _alarm() -> Iterator[None]:
    """Interrupt the test, a moment from now, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def raw() -> Iterator[zmq.Socket[bytes]]:
    """A dealer that keeps no limits of ours."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        yield dealer


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "tcp://localhost:0"])
def test_a_free_port_is_found_and_told(address: str) -> None:
    with closing(serve(address)) as one, closing(serve(address)) as other:
        assert one.address != other.address
        assert int(one.address.removeprefix("tcp://127.0.0.1:")) > 0


def test_the_address_that_is_told_can_be_dialled() -> None:
    with closing(serve("tcp://127.0.0.1:0")) as server, closing(dial(server.address)) as client:
        client.send([b"hello"])
        assert server.receive(TIMEOUT_S) is not None


def test_a_port_in_use_is_named_with_advice() -> None:
    with closing(serve("tcp://127.0.0.1:0")) as server:
        text = f"'{server.address}' is in use: stop the program that listens there, or choose"
        with pytest.raises(AddressError, match=text):
            serve(server.address)


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.0.2.1:5555", "tcp://example.org:5555"])
def test_an_address_open_to_other_machines_is_refused(address: str) -> None:
    with pytest.raises(AddressError, match="can be reached from other machines") as caught:
        serve(address)
    assert repr(address) in str(caught.value)


def test_an_address_open_to_other_machines_can_be_insisted_on() -> None:
    with closing(serve("tcp://*:0", insecure=True)) as server:
        port = server.address.rpartition(":")[2]
        with closing(dial(f"tcp://127.0.0.1:{port}")) as client:
            client.send([b"hello"])
            assert server.receive(TIMEOUT_S) is not None


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "eth99"])
def test_an_address_of_another_machine_cannot_be_bound_to(host: str) -> None:
    with pytest.raises(AddressError, match="address of this machine: expected"):
        serve(f"tcp://{host}:5555", insecure=True)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "tcp://*:5555"])
def test_only_one_server_can_be_dialled(address: str) -> None:
    with pytest.raises(AddressError, match="does not name one server"):
        dial(address)


def test_a_live_socket_file_is_not_stolen(short_root: Path) -> None:
    address = f"ipc://{short_root}/s"
    with closing(serve(address)) as server, closing(dial(address)) as client:
        with pytest.raises(AddressError, match="is in use by another server: stop that one"):
            serve(address)
        client.send([b"still here"])
        assert server.receive(TIMEOUT_S) is not None


def test_a_stale_socket_file_is_replaced_and_the_file_goes_with_the_server(short_root: Path) -> None:
    path = short_root / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with closing(serve(f"ipc://{path}")):
        assert path.is_socket()
    assert not path.exists()


def test_the_file_goes_even_where_the_working_folder_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = serve("ipc://s")
    monkeypatch.chdir("/")
    server.close()
    assert not (tmp_path / "s").exists()


def test_a_file_that_has_taken_the_sockets_place_is_left(short_root: Path) -> None:
    path = short_root / "s"
    server = serve(f"ipc://{path}")
    path.unlink()
    path.write_text("of another")
    server.close()
    assert path.read_text() == "of another"


def test_a_file_that_is_no_socket_is_left_alone(short_root: Path) -> None:
    path = short_root / "notes.txt"
    path.write_text("precious")
    with pytest.raises(AddressError, match="is the path of something else"):
        serve(f"ipc://{path}")
    assert path.read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(short_root: Path) -> None:
    with pytest.raises(AddressError, match="is in a folder that does not exist: create it first"):
        serve(f"ipc://{short_root}/absent/s")


@pytest.mark.usefixtures("_alarm")
def test_a_waiting_server_can_be_interrupted() -> None:
    with closing(serve("tcp://127.0.0.1:0")) as server, pytest.raises(_InterruptedError):
        server.receive(None)


@pytest.mark.usefixtures("_alarm")
def test_a_waiting_client_can_be_interrupted(short_root: Path) -> None:
    with closing(dial(f"ipc://{short_root}/s")) as client, pytest.raises(_InterruptedError):
        client.receive(None)


def test_a_message_of_too_many_frames_is_dropped_and_the_next_is_heard(raw: zmq.Socket[bytes]) -> None:
    with closing(serve("tcp://127.0.0.1:0", limits=Limits(frames=3))) as server:
        raw.connect(server.address)
        raw.send_multipart([b"x"] * 4)
        # Its connection is cut then, and what was on its way over that may be lost.
        for _ in range(TRIES):
            raw.send_multipart([b"y"] * 3)
            if (received := server.receive(TIMEOUT_S / TRIES)) is not None:
                break
        assert received is not None
        assert received[1] == [b"y"] * 3


def test_a_frame_that_is_too_long_is_not_taken_in(raw: zmq.Socket[bytes]) -> None:
    with closing(serve("tcp://127.0.0.1:0", limits=Limits(frame_bytes=1000))) as server:
        raw.connect(server.address)
        raw.send(bytes(1001))
        with closing(dial(server.address)) as client:
            client.send([bytes(1000)])
            received = server.receive(TIMEOUT_S)
            assert received is not None
            assert len(received[1][0]) == 1000


def test_a_client_that_found_another_program_finds_the_server_that_takes_its_place() -> None:
    """After a fault in what it hears, ZeroMQ dials no more, and has no queue in which anything could wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        client = dial(address)
        connection, _ = listener.accept()
        with connection:
            connection.sendall(zmtp.greeting(b"CURVE"))
            assert zmtp.is_closed(connection)
    with closing(client), closing(serve(address)) as server:
        clock = SystemClock()
        end = clock.now() + TIMEOUT_S
        # Again and again: what went into the old queue on the way is lost with it.
        while (received := server.receive(0.05)) is None and clock.now() < end:
            client.send([b"hello"])
        assert received is not None
        assert received[1] == [b"hello"]


@pytest.mark.parametrize("linger_s", [0.0, 0.05])
def test_closing_without_a_server_does_not_wait(short_root: Path, linger_s: float) -> None:
    address = f"ipc://{short_root}/s"
    client = dial(address)
    client.send([b"never heard"])
    closing_it = threading.Thread(target=client.close, args=(linger_s,), daemon=True)
    closing_it.start()
    closing_it.join(TIMEOUT_S)
    assert not closing_it.is_alive()
    # What was to be sent is gone with it, and so is what would have sent it.
    with closing(serve(address)) as server:
        assert server.receive(0.1) is None
        assert server.lost() == []


def test_a_signal_that_ends_no_poll_is_handled_soon_all_the_same() -> None:
    """As one that comes just before a poll begins: here it comes to another thread, while the poll is on."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _InterruptedError

    def signalled() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with closing(serve("tcp://127.0.0.1:0")) as server:
            began = SystemClock().now()
            threading.Timer(0.05, signalled).start()
            with pytest.raises(_InterruptedError):
                server.receive(TIMEOUT_S)
            assert SystemClock().now() - began < TIMEOUT_S / 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_client_waits_for_a_server_that_reads_in_time() -> None:
    limits = Limits(queue=4, backlog=4)
    with (
        closing(serve("tcp://127.0.0.1:0", limits=limits)) as server,
        closing(dial(server.address, limits=limits)) as client,
    ):
        received: list[int] = []

        def read() -> None:
            while len(received) < 200:
                message = server.receive(5.0)
                assert message is not None
                received.append(message[1][0][0])

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(200):
            client.send([bytes([number]), bytes(256 * 1024)], 5.0)
        reader.join()
        assert received == list(range(200))


def test_what_a_server_holds_of_one_that_sends_for_ever_is_bounded() -> None:
    limits = Limits(backlog=4, queue=1000)
    with (
        closing(serve("tcp://127.0.0.1:0", limits=limits)) as server,
        closing(dial(server.address, limits=Limits(queue=4))) as client,
    ):
        sent = 0
        with suppress(PeerSlow):
            while sent < 1000:
                client.send([bytes(512 * 1024)], 0.5)
                sent += 1
        # Beside the backlogs at both ends: what the sockets' buffers hold, of a few MiB each.
        assert sent < 100
