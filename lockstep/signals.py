"""Interrupts: SIGTERM and a closed terminal end a process as Ctrl-C does, and tidying up is not interrupted again."""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from common.clock import Clock, SystemClock

#: Seconds after an interrupt in which another one changes nothing: longer than tidying up takes.
TIDY_S = 5.0


@dataclass
class InterruptOnce:
    """A signal handler: raises `KeyboardInterrupt`, and lets the signals be that come while we tidy up after it."""

    clock: Clock
    #: When it last raised.
    _raised: float = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = self.clock.now()
        if now - self._raised >= TIDY_S:
            self._raised = now
            raise KeyboardInterrupt


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as SIGINT does, and SIGINT even where the shell had it ignored."""
    handler = InterruptOnce(SystemClock())
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    # `nohup` ignores it, and is to be obeyed.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, handler)


def ignore_signals() -> None:
    """Let no signal but SIGKILL change how this process ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM within the context; does nothing outside the main thread, which alone gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
