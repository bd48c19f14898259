"""A run that is never over, and how fast it goes beside whatever else there is."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.client import StatusClient
from tests.system.jobs import ENDLESS
from tests.system.processes import PATIENCE_S, Place, Process


@contextmanager
def training(place: Place, *flags: str) -> Iterator[tuple[Process, str]]:
    """Give a server with a worker, in the middle of a run, and its address."""
    server, address = place.serve(*ENDLESS, *flags, bind="tcp://127.0.0.1:0")
    place.start("worker", address)
    server.line_with("epoch 10/")
    yield server, address
    server.interrupt()


def speed_of(server: Process, address: str, seconds: float) -> float:
    """Return how many steps a run makes per second, over so many seconds; lines leave out more and more epochs."""
    clock = SystemClock()
    with closing(StatusClient(dial(address), clock)) as client:
        before, began = client.ask(PATIENCE_S), clock.now()
        assert not server.ends_within(seconds)
        after, took_s = client.ask(PATIENCE_S), clock.now() - began
    assert before is not None
    assert after is not None
    return (after.step - before.step) / took_s
