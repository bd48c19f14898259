"""A run that is never over, and how fast it goes beside whatever else there is."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lockstep.common.runtime.clock import SystemClock
from tests.system.jobs import ENDLESS
from tests.system.processes import GONE_S, Place, Process


@contextmanager
def training(place: Place, *flags: str) -> Iterator[tuple[Process, str]]:
    """Give a server with a worker, in the middle of a run, and its address."""
    server = place.start("server", *ENDLESS, "--bind", "tcp://127.0.0.1:0", "--run-dir", "run", *flags)
    address = server.line_with("lockstep worker").split()[-1]
    place.start("worker", address)
    server.line_with("epoch 10/")
    yield server, address
    server.send(signal.SIGINT)
    assert server.end(GONE_S)[0] == 130


def epochs_in(server: Process, seconds: float) -> int:
    """Return how many epochs are told of within so many seconds."""
    clock, count = SystemClock(), 0
    end = clock.now() + seconds
    for line in server.lines():
        count += line.startswith("epoch ")
        if clock.now() >= end:
            break
    return count
