"""Whatever a worker does over its socket, it costs the server no more memory than its window, and the others go on."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from common.clock import SystemClock
from common.codec import decode, encode
from common.messages import (
    PROTOCOL_VERSION,
    Alive,
    Join,
    Lease,
    Message,
    Part,
    Ready,
    Result,
    ServerMessage,
    StatusAsked,
    Weights,
    Welcome,
    WorkerMessage,
)
from common.numerics import fingerprint
from common.slices import FRAME
from common.transport.port import ClientPort, Limits, PeerSlow
from common.transport.zeromq import dial
from ps.leasing import WINDOW
from tests.system.processes import GONE_S, Place, Process

WIDE = """
from lockstep import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 4000), nn.ReLU(), nn.Linear(4000, 10))
"""

#: Bytes of its vector: 13 frames.
VECTOR = 4 * (784 * 4000 + 4000 + 4000 * 10 + 10)

#: Workers in a run here, the bad one included, and what all may cost beside the steady state.
WORKERS = 2
ALLOWED = WINDOW * VECTOR * WORKERS + 32 * 2**20

JOB = ("--model", "wide.py:build", "--data", "tiny.npz", "--global-batch", "32", "--micro-batches", "4")
SERVER = ("--transport", "tcp", "--lease-timeout", "0.1", "--run-dir", "run")

#: Seconds that a message of a bad worker may take to leave.
PATIENCE_S = 0.2


class Bad:
    """A worker that takes a place in the run, and then misbehaves."""

    def __init__(self, address: str, port: ClientPort) -> None:
        self.port = port
        self.say(Join(protocol=PROTOCOL_VERSION, incarnation="bad", host="bad", pid=1, fingerprint=fingerprint()))
        assert isinstance(self.read(), Welcome)
        self.say(Ready())
        self.lease = self.first_lease()

    def say(self, message: WorkerMessage, size: int = 0) -> None:
        with suppress(PeerSlow):
            self.port.send(encode(message, [np.ones(size, np.float32)] if size else []), PATIENCE_S)

    def read(self) -> Message:
        frames = self.port.receive(GONE_S)
        assert frames is not None
        return decode(frames, ServerMessage)[0]

    def first_lease(self) -> Lease:
        while True:
            message = self.read()
            if isinstance(message, Lease) and message.work == "train":
                return message
            assert isinstance(message, Weights | Alive | Lease)

    def part(self, start: int) -> Part:
        return Part(step=self.lease.step, lo=self.lease.lo, hi=self.lease.hi, start=start)


#: So many vectors that are not read would be more than is allowed.
ROUNDS = ALLOWED // VECTOR + 1

#: What a bad worker does until it is done with it, or a time is over.
Misbehave = Callable[[Bad, Process, float], None]


def never_reads(bad: Bad, server: Process, seconds: float) -> None:
    """Show a sign of life each time a lease has run out, so that the next comes, and with it the next weights."""
    clock, rounds = SystemClock(), 0
    end = clock.now() + seconds
    for line in server.lines():
        if "leased again" in line:
            bad.say(Alive())
            rounds += 1
        if "does not read" in line or (rounds > ROUNDS and clock.now() > end):
            return


def for_ever(say: Callable[[Bad], None]) -> Misbehave:
    """Return what says something again and again."""

    def misbehave(bad: Bad, server: Process, seconds: float) -> None:
        clock = SystemClock()
        end = clock.now() + seconds
        while clock.now() < end:
            say(bad)

    return misbehave


def ask_without_reading(bad: Bad) -> None:
    bad.say(StatusAsked())


def send_one_frame(bad: Bad) -> None:
    bad.say(bad.part(0), FRAME)


def send_frames_of_no_lease(bad: Bad) -> None:
    bad.say(Part(step=10**9, lo=0, hi=1, start=FRAME), FRAME)


def send_results(bad: Bad) -> None:
    step, lo, hi = bad.lease.step, bad.lease.lo, bad.lease.hi
    bad.say(Result(work="train", step=step, lo=lo, hi=hi, loss_sum=1.0, correct=1, count=1, compute_s=1.0))


def send_long_frames(bad: Bad) -> None:
    with suppress(PeerSlow):
        bad.port.send([b"", bytes(2 * ALLOWED)], PATIENCE_S)


@contextmanager
def running(place: Place) -> Iterator[tuple[Process, str]]:
    """Give a server with one good worker, in its steady state, and its address."""
    (place.folder / "wide.py").write_text(WIDE)
    server = place.start("server", *JOB, *SERVER, "--epochs", "1000000", "--bind", "tcp://127.0.0.1:0")
    address = server.line_with("lockstep worker").split()[-1]
    place.start("worker", address)
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


BAD = {
    "never reads": never_reads,
    **{
        say.__name__: for_ever(say)
        for say in (ask_without_reading, send_one_frame, send_frames_of_no_lease, send_results, send_long_frames)
    },
}


@pytest.mark.parametrize("misbehave", BAD.values(), ids=BAD)
@pytest.mark.parametrize("seconds", [2.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_a_bad_worker_costs_its_window_at_most(place: Place, misbehave: Misbehave, seconds: float) -> None:
    with running(place) as (server, address), closing(dial(address, limits=Limits(frame_bytes=2**30))) as port:
        steady = memory(server, "VmHWM")
        misbehave(Bad(address, port), server, seconds)
        # The others go on, while it is still there.
        for _ in range(2):
            server.line_with("epoch ")
        assert memory(server, "VmHWM") <= steady + ALLOWED


def test_the_run_beside_a_bad_worker_has_the_bits_of_any_other(place: Place) -> None:
    (place.folder / "wide.py").write_text(WIDE)
    server = place.start("server", *JOB, *SERVER, "--steps", "12", "--bind", "tcp://127.0.0.1:0")
    address = server.line_with("lockstep worker").split()[-1]
    with closing(dial(address)) as port:
        bad = Bad(address, port)
        # It hangs from here on, with all pieces of the first step.
        place.start("worker", address)
        assert server.end()[0] == 0
        assert bad.lease.step == 0
    alone = place.start("train", *JOB, "--steps", "12", "--workers", "0", "--run-dir", "alone")
    assert alone.end()[0] == 0
    digests = {
        json.loads((place.folder / name / "result.json").read_text())["weights_sha256"] for name in ("run", "alone")
    }
    assert len(digests) == 1
