"""Interrupts come once, and not while we tidy up."""

import os
import signal

import pytest

from lockstep.common.runtime.clock import ManualClock
from lockstep.launch.lifetime import TIDY_S, InterruptOnce, uninterrupted


def test_the_first_signal_interrupts_and_the_next_are_let_be() -> None:
    clock = ManualClock(100.0)
    handler = InterruptOnce(clock)
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)
    handler(signal.SIGINT, None)
    clock.advance(TIDY_S - 0.1)
    handler(signal.SIGTERM, None)


def test_where_tidying_up_hangs_a_later_signal_interrupts_it() -> None:
    clock = ManualClock(100.0)
    handler = InterruptOnce(clock)
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)
    clock.advance(TIDY_S)
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)


def test_within_the_context_signals_are_ignored_and_after_it_they_are_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before
