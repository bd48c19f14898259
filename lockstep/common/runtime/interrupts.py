"""Defers interrupts while state is changed that must stay consistent.

By Python's own handlers and not by the signal mask: the system may deliver a signal to any thread of a process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Terminated(KeyboardInterrupt):
    """An interrupt by the system, as before a machine is stopped, and not by a person: SIGTERM."""


@dataclass
class _Hold:
    """The number of contexts that defer interrupts, and the one that came. For the main thread only, as signals are."""

    depth: int = 0
    come: KeyboardInterrupt | None = None


_hold = _Hold()


def interrupt(*, is_terminated: bool = False) -> None:
    """Raise `KeyboardInterrupt`, or `Terminated`, at the end of `held_back` if inside it: for signal handlers."""
    raised = Terminated() if is_terminated else KeyboardInterrupt()
    if not _hold.depth:
        raise raised
    _hold.come = raised


@contextmanager
def held_back() -> Iterator[None]:
    """Defer an interrupt to the end of the context, which must be short: a person does not wait long after Ctrl-C."""
    _hold.depth += 1
    try:
        yield
    finally:
        _hold.depth -= 1
        if not _hold.depth and _hold.come is not None:
            raised, _hold.come = _hold.come, None
            raise raised
