"""A worker that takes a place in a run, over its socket, and then misbehaves for as long as it is let."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from lockstep.common.aggregation.slices import FRAME
from lockstep.common.aggregation.tree import Node
from lockstep.common.job.tally import pack_losses
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    Join,
    Lease,
    Message,
    Ping,
    Ready,
    Result,
    ServerMessage,
    StatusRequest,
    SumsFrame,
    Weights,
    Welcome,
    WorkerMessage,
)
from lockstep.common.transport.port import ClientPort, PeerSlow
from tests.system.processes import GONE_S

#: Seconds that one of its messages may take to leave.
PATIENCE_S = 0.2


class BadWorker:
    """One with the first lease of a training step."""

    def __init__(self, port: ClientPort) -> None:
        self.port = port
        self.say(Join(protocol=PROTOCOL_VERSION, incarnation="bad", host="bad", pid=1, fingerprint=fingerprint()))
        welcome = self.read()
        assert isinstance(welcome, Welcome)
        self.batch, self.pieces = welcome.job.global_batch, welcome.job.micro_batches
        self.frame = min(FRAME, welcome.size)
        self.say(Ready(rank=welcome.rank, part=welcome.part))
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
            assert isinstance(message, Weights | Ping | Lease)

    def part(self, start: int) -> SumsFrame:
        return SumsFrame(step=self.lease.step, lo=self.lease.lo, hi=self.lease.hi, start=start)

    def result(self) -> Result:
        """Return what may be the result of its lease."""
        node = Node(self.lease.lo, self.lease.hi)
        count = node.hi * self.batch // self.pieces - node.lo * self.batch // self.pieces
        return Result(
            work="train",
            step=self.lease.step,
            lo=node.lo,
            hi=node.hi,
            loss_sum=1.0,
            count=count,
            compute_s=1.0,
            number=self.lease.number,
            losses=pack_losses([1.0] * len(node)),
        )


#: What it does again and again.
Act = Callable[[BadWorker], None]


def never_read(bad: BadWorker) -> None:
    """Show a sign of life, so that there may be another lease, and with it other weights."""
    bad.say(Ping())


def ask_without_reading(bad: BadWorker) -> None:
    bad.say(StatusRequest())


def send_one_frame(bad: BadWorker) -> None:
    bad.say(bad.part(0), bad.frame)


def send_frames_of_no_lease(bad: BadWorker) -> None:
    bad.say(SumsFrame(step=10**9, lo=0, hi=1, start=0), bad.frame)


def send_garbage(bad: BadWorker) -> None:
    with suppress(PeerSlow):
        bad.port.send([bytes(1000)], PATIENCE_S)


def send_its_share_again(bad: BadWorker) -> None:
    bad.say(bad.result())


def send_long_frames(bad: BadWorker) -> None:
    with suppress(PeerSlow):
        bad.port.send([b"", bytes(2**28)], PATIENCE_S)


ACTS: dict[str, Act] = {
    act.__name__: act
    for act in (
        never_read,
        ask_without_reading,
        send_one_frame,
        send_frames_of_no_lease,
        send_garbage,
        send_its_share_again,
        send_long_frames,
    )
}


@contextmanager
def misbehaving(bad: BadWorker, act: Act, every_s: float = 0.0) -> Iterator[None]:
    """Let it do that, in a thread of its own, for as long as the context lasts."""
    is_over = threading.Event()

    def act_again() -> None:
        while not is_over.is_set():
            act(bad)
            is_over.wait(every_s)

    thread = threading.Thread(target=act_again)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
