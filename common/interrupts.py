"""Holding interrupts back while books are written that must agree with one another."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

#: The signals that end a process in an orderly way.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals that end the process wait for the end of the context; to be short: nobody waits for long on Ctrl-C.

    What has come before is raised on the way in, with nothing changed.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
