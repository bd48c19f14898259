"""Interrupts come once, and not while we tidy up."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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


#: A child that, once its parent is gone, misses a file; signals are blocked, so that only the error can end it.
CHILD = """
import select, signal
from pathlib import Path
from lockstep.launch.lifetime import ENDING, ends_with_parent

signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
try:
    with ends_with_parent(Path({folder!r})):
        if {waits}:
            poll = select.poll()
            poll.register(0, select.POLLHUP)
            poll.poll()
        open("/nowhere/at-all")
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(("is_gone", "expected"), [(True, "KeyboardInterrupt"), (False, "FileNotFoundError")])
def test_an_error_when_the_parent_is_gone_is_an_interrupt(tmp_path: Path, *, is_gone: bool, expected: str) -> None:
    command = [sys.executable, "-P", "-c", CHILD.format(waits=is_gone, folder=str(tmp_path))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if is_gone:
            child.stdin.close()
        assert child.stdout.read() == f"{expected}\n"
