"""A worker that misbehaves takes little of the others' speed. For a machine with nothing else to do."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from common.clock import SystemClock
from common.transport.port import Limits
from common.transport.zeromq import dial
from tests.system.bad_worker import ACTS, Act, BadWorker, misbehaving, never_read
from tests.system.jobs import ENDLESS
from tests.system.processes import GONE_S, Place, Process

pytestmark = pytest.mark.slow

#: Seconds over which the speed is measured without the bad worker, before it comes and after, and beside it.
ALONE_S, BESIDE_S, BESIDE_UNREAD_S = 10.0, 30.0, 60.0

#: Seconds between two acts: what a fast sender takes of a core is not the server's doing, and shows only where there
#: are no more cores than processes. One that does not read lives on, and asks no more often than others do.
EVERY_S, ALIVE_S = 0.001, 0.05

#: The share of their speed that the others keep beside one that does not read, and beside one that sends too much.
KEPT_UNREAD, KEPT = 0.9, 0.8


@contextmanager
def training(place: Place) -> Iterator[tuple[Process, str]]:
    """Give a server with a worker, in the middle of a run over sockets, and its address."""
    serving = ("--bind", "tcp://127.0.0.1:0", "--transport", "tcp", "--run-dir", "run")
    server = place.start("server", *ENDLESS, *serving)
    address = server.line_with("lockstep worker").split()[-1]
    place.start("worker", address)
    server.line_with("epoch 200/")
    yield server, address
    server.send(signal.SIGINT)
    assert server.end(GONE_S)[0] == 130


def epochs_a_second(server: Process, seconds: float) -> float:
    """Return the epochs told of over so many seconds."""
    clock, count = SystemClock(), 0
    began = clock.now()
    for line in server.lines():
        count += line.startswith("epoch ")
        if clock.now() >= began + seconds:
            break
    return count / (clock.now() - began)


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_the_others_keep_most_of_their_speed(place: Place, act: Act) -> None:
    seconds, kept, every_s = (BESIDE_UNREAD_S, KEPT_UNREAD, ALIVE_S) if act is never_read else (BESIDE_S, KEPT, EVERY_S)
    with training(place) as (server, address), closing(dial(address, limits=Limits(frame_bytes=2**30))) as port:
        before = epochs_a_second(server, ALONE_S)
        with misbehaving(BadWorker(port), act, every_s):
            beside = epochs_a_second(server, seconds)
        port.close()
        alone = (before + epochs_a_second(server, ALONE_S)) / 2
        print(f"{beside:.0f} epochs a second beside it, {alone:.0f} without: {beside / alone:.2f}")
        assert beside >= kept * alone
