"""Interrupts: SIGTERM ends a process as Ctrl-C does, and tidying up is not interrupted by a second one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def treat_termination_as_interrupt() -> None:
    """Let SIGTERM raise `KeyboardInterrupt`, and SIGINT even where the shell started us with it ignored."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
