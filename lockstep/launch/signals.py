"""Interrupts: SIGTERM and a closed terminal end a process as Ctrl-C does, and tidying up is not interrupted again."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from common.runtime.clock import Clock, SystemClock
from common.runtime.interrupts import interrupt

#: What stands for a signal's handler: a function, a constant of the system, or nothing that Python knows of.
Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

#: The signals that end a process in an orderly way.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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
            interrupt()


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as SIGINT does, and SIGINT even where the shell had it ignored."""
    handler = InterruptOnce(SystemClock())
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    # `nohup` ignores it, and is to be obeyed.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, handler)


def ignore_signals() -> dict[signal.Signals, Handler]:
    """Let no signal but SIGKILL change how this process goes on; return the handlers that were there."""
    # Blocked first, which also handles what has come: Python complains of a signal whose handler is gone by then.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return before


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore signals within the context; does nothing outside the main thread, which alone gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = ignore_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
