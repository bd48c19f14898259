"""Whatever a worker does over its socket, it costs the server no more memory than its window, and the others go on."""

import re
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.port import Limits
from lockstep.common.transport.zeromq.ports import dial
from lockstep.ps.coordinator.scheduling.round_state import WINDOW
from tests.system.bad_worker import ACTS, Act, BadWorker, misbehaving, never_read
from tests.system.processes import GONE_S, Place, Process

WIDE = """
from lockstep import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 4000), nn.ReLU(), nn.Linear(4000, 10))
"""

#: Bytes of its vector: five frames.
VECTOR = 4 * (784 * 4000 + 4000 + 4000 * 10 + 10)

#: Workers in a run here, the bad one included, and what all may cost beside the steady state.
WORKERS = 2
ALLOWED = WINDOW * VECTOR * WORKERS + 32 * 2**20

JOB = ("--model", "wide.py:build", "--data", "tiny.npz", "--global-batch", "32", "--micro-batches", "4")
SERVER = ("--transport", "tcp", "--lease-timeout", "0.1", "--run-dir", "run")


@contextmanager
def running(place: Place) -> Iterator[tuple[Process, str]]:
    """Give a server with one good worker, in its steady state, and its address."""
    (place.folder / "wide.py").write_text(WIDE)
    server, address = place.serve(*JOB, *SERVER, "--epochs", "1000000", bind="tcp://127.0.0.1:0")
    place.start("worker", address, "--workers", "1", "--apart")
    for _ in range(4):
        server.line_with("epoch ")
    try:
        yield server, address
    finally:
        server.send(signal.SIGINT)
        server.end(GONE_S)


def memory(process: Process, field: str) -> int:
    """Return bytes of memory that a process has, `VmRSS`, or at most had, `VmHWM`."""
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


#: That of the suite: one that reads nothing. `test_floods` sends what is refused.
COVERING = {"never_read"}

#: Seconds between two signs of life of one that does not read, and for which it goes on with them at least: there is
#: to be more for it than it may be kept.
ALIVE_S, UNREAD_S = 0.05, 10.0


@pytest.mark.parametrize(
    ("seconds", "act"),
    [
        *(
            pytest.param(2.0, act, marks=[] if name in COVERING else pytest.mark.slow, id=f"2-{name}")
            for name, act in ACTS.items()
        ),
        *(pytest.param(60.0, act, marks=pytest.mark.slow, id=f"60-{name}") for name, act in ACTS.items()),
    ],
)
def test_a_bad_worker_costs_its_window_at_most(place: Place, seconds: float, act: Act) -> None:
    with running(place) as (server, address), closing(dial(address, limits=Limits(frame_bytes=2**30))) as port:
        steady, clock = memory(server, "VmHWM"), SystemClock()
        with misbehaving(BadWorker(port), act, ALIVE_S if act is never_read else 0.0):
            end = clock.now() + (max(seconds, UNREAD_S) if act is never_read else seconds)
            for line in server.lines():
                if clock.now() >= end or "does not read" in line:
                    break
            # The others go on, while it is still there.
            for _ in range(2):
                server.line_with("epoch ")
        cost = memory(server, "VmHWM") - steady
        print(f"it cost {cost / 2**20:.1f} MiB of {ALLOWED / 2**20:.1f}")
        assert cost <= ALLOWED
