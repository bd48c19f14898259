"""Holding interrupts back while books are written that must agree with one another.

By Python's own handlers and not by the mask of signals: the system may give a signal to any thread of a process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Hold:
    """How many contexts hold interrupts back, and whether one came: the main thread's alone, as signals are."""

    depth: int = 0
    has_come: bool = False


_hold = _Hold()


def interrupt() -> None:
    """Raise `KeyboardInterrupt`, at the end of `held_back` where that is entered: for the handlers of signals."""
    if _hold.depth:
        _hold.has_come = True
    else:
        raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[None]:
    """Let an interrupt wait for the end of the context; to be short: nobody waits for long on Ctrl-C."""
    _hold.depth += 1
    try:
        yield
    finally:
        _hold.depth -= 1
        if not _hold.depth and _hold.has_come:
            _hold.has_come = False
            raise KeyboardInterrupt
