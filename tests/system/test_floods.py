"""What strangers send by hand, at a run's own server: it costs little memory, and the run goes on beside it."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import repeat
from pathlib import Path

import pytest

from tests.lockstep.common.transport.zeromq import zmtp
from tests.system.jobs import AT_FULL_SPEED
from tests.system.processes import Place, Process
from tests.system.speed import speed_of, training

#: Memory that strangers may cost, beside a steady run: with one whose message has no end what it is allowed, and what
#: a connection within one machine brings until the next look at it. Not cut off, that one would send 3 GiB.
ALLOWED, ALLOWED_WITHOUT_END = 64 * 2**20, 512 * 2**20

#: The share of its speed that a run keeps at least; the seconds over which it is measured with and without strangers,
#: in turn, and how often.
KEPT, MEASURED_S, TURNS = 0.8, 2.0, 4

#: Seconds after which one that was cut off comes again: strangers are to cost the server's time, and not our own.
AGAIN_S = 0.1

#: Connections of one stranger at a time.
CONNECTIONS = 50

#: Seconds between two bytes of one that takes its time.
DRIP_S = 0.05

#: Comes again and again, until it is over.
Flood = Callable[[str, threading.Event], None]


def connect_and_say_nothing(address: str, is_over: threading.Event) -> None:
    """Until the server ends it, and then anew."""
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(zmtp.connected(address))
        is_over.wait(1.0)


def shake_hands_slowly(address: str, is_over: threading.Event) -> None:
    greeting = zmtp.greeting(b"NULL")
    with ExitStack() as stack:
        connections = [stack.enter_context(zmtp.connected(address)) for _ in range(CONNECTIONS)]
        for byte in greeting:
            for connection in connections:
                zmtp.send_all(connection, [bytes([byte])])
            if is_over.wait(DRIP_S):
                return


def send_long_frames(address: str, is_over: threading.Event) -> None:
    with zmtp.shaken(address) as connection:
        zmtp.send_all(connection, [bytes([zmtp.LONG]) + (2**62).to_bytes(8, "big")])
        zmtp.is_closed(connection)


def send_many_parts(address: str, is_over: threading.Event) -> None:
    with zmtp.shaken(address) as connection:
        zmtp.send_all(connection, [zmtp.message([b""] * 100_000)])
        zmtp.is_closed(connection)


def send_a_message_without_end(address: str, is_over: threading.Event) -> None:
    with zmtp.shaken(address) as connection:
        zmtp.send_until_closed(connection, zmtp.frame(bytes(2**20), zmtp.MORE), 3 * 2**30)


def send_garbage(address: str, is_over: threading.Event) -> None:
    with zmtp.shaken(address) as connection:
        zmtp.send_all(connection, repeat(zmtp.message([b"", bytes(1000)]), 1000))


FLOODS: dict[str, Flood] = {
    flood.__name__: flood
    for flood in (
        connect_and_say_nothing,
        shake_hands_slowly,
        send_long_frames,
        send_many_parts,
        send_a_message_without_end,
        send_garbage,
    )
}


@contextmanager
def flooded(address: str, floods: list[Flood]) -> Iterator[None]:
    """Let strangers come, each in a thread of its own, for as long as the context lasts."""
    is_over = threading.Event()

    def come_again(flood: Flood) -> None:
        while not is_over.is_set():
            with suppress(ConnectionError):  # cut off in the middle of a handshake
                flood(address, is_over)
            is_over.wait(AGAIN_S)

    strangers = [threading.Thread(target=come_again, args=(flood,)) for flood in floods]
    for stranger in strangers:
        stranger.start()
    try:
        yield
    finally:
        is_over.set()
        for stranger in strangers:
            stranger.join()


def peak(process: Process) -> int:
    """Return the bytes of memory that a process has had at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.popen.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def allowed(*floods: Flood) -> int:
    return ALLOWED_WITHOUT_END if send_a_message_without_end in floods else ALLOWED


@pytest.mark.parametrize(
    "floods",
    [
        [flood for flood in FLOODS.values() if flood is not send_a_message_without_end],
        pytest.param([send_a_message_without_end], marks=pytest.mark.slow),
    ],
    ids=["bounded by libzmq", "without end"],
)
def test_floods_cost_little_memory_and_the_run_goes_on(place: Place, floods: list[Flood]) -> None:
    with training(place) as (server, address):
        steady = peak(server)
        with flooded(address, floods):
            # Longer than a handshake may take.
            assert speed_of(server, address, 5.0) > 0
        assert peak(server) <= steady + allowed(*floods)
        # Whoever is honest still gets in.
        second = place.start("worker", address, "--workers", "1", "--apart")
        assert "joined" in server.line_with(f"pid {second.popen.pid})")


@pytest.mark.slow
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_run_keeps_most_of_its_speed(place: Place, flood: Flood) -> None:
    """For a machine with nothing else to do: strangers, server and worker share its cores."""
    with training(place, *AT_FULL_SPEED) as (server, address):
        steady, alone, beside = peak(server), 0.0, 0.0
        for _ in range(TURNS):
            alone += speed_of(server, address, MEASURED_S) / TURNS
            with flooded(address, [flood]):
                beside += speed_of(server, address, MEASURED_S) / TURNS
        cost = (peak(server) - steady) / 2**20
        text = f"{beside:.0f} steps per second beside it, {alone:.0f} without: {beside / alone:.2f}"
        print(f"{text}; it cost {cost:.1f} MiB")
        assert beside >= KEPT * alone
        assert peak(server) <= steady + allowed(flood)
