"""Defers interrupts while state is changed that must stay consistent.

By Python's own handlers and not by the signal mask: the system may deliver a signal to any thread of a process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Hold:
    """How many contexts defer interrupts, and whether one came. For the main thread only, as signals are."""

    depth: int = 0
    has_come: bool = False


_hold = _Hold()


def interrupt() -> None:
    """Raise `KeyboardInterrupt`, at the end of `held_back` if inside it: for signal handlers."""
    if _hold.depth:
        _hold.has_come = True
    else:
        raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[None]:
    """Defer an interrupt to the end of the context, which must be short: nobody waits long after Ctrl-C."""
    _hold.depth += 1
    try:
        yield
    finally:
        _hold.depth -= 1
        if not _hold.depth and _hold.has_come:
            _hold.has_come = False
            raise KeyboardInterrupt
