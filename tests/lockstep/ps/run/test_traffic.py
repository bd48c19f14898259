"""Bytes are counted where sums or weights cross a socket, and nothing else is."""

import numpy as np

from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import Message, Ping, Result, SumsFrame, Weights
from lockstep.ps.run.progress import NOTHING, Moved, Traffic

VALUES = np.ones(100, np.float32)

RESULT = Result(work="train", step=0, lo=0, hi=1, loss_sum=1.0, count=1, compute_s=0.1)


def counted(*messages: Message, values: np.ndarray | None = VALUES) -> Moved:
    traffic = Traffic()
    for message in messages:
        frames = encode(message, [] if values is None else [values])
        traffic.record_received(message, frames)
        traffic.record_sent(message, frames)
    return traffic.drain()


def test_sums_that_come_and_weights_that_go_are_counted_with_their_headers() -> None:
    part, weights = SumsFrame(step=0, lo=0, hi=1, start=0), Weights(step=0, start=0)
    assert 400 < counted(part).sums < 480
    assert counted(part).weights == 0
    assert counted(part, part).sums == 2 * counted(part).sums
    assert 400 < counted(weights).weights < 480
    assert counted(weights).sums == 0


def test_what_brings_no_array_is_not_counted() -> None:
    assert counted(RESULT, Ping(), values=None) == Moved()


def test_what_was_taken_is_not_counted_again() -> None:
    traffic = Traffic()
    traffic.add(Moved(sums=7, weights=5))
    traffic.add(Moved(sums=1))
    assert [traffic.drain(), traffic.drain()] == [Moved(sums=8, weights=5), Moved()]


def test_the_mean_is_over_the_steps() -> None:
    assert NOTHING.mean(0) == Moved()
    moved = [Moved(sums=sums, weights=10) for sums in (100, 200, 301)]
    assert sum(moved, NOTHING).mean(3) == Moved(sums=200, weights=10)
