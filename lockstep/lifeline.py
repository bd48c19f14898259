"""Ends this process when the one that started it is gone, however it went: nothing is left running."""

import os
import signal
import threading

#: Seconds for an orderly end after the parent is gone.
GRACE_S = 3.0

#: The file descriptor of standard input.
STDIN = 0


def hold() -> None:
    """Watch standard input, a pipe that the parent keeps open: its end means that the parent is gone."""
    threading.Thread(target=_watch, name="lifeline", daemon=True).start()


def _watch() -> None:
    # Not through `sys.stdin`: its lock, held by a daemon thread, would abort the interpreter at its end.
    while os.read(STDIN, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    os._exit(130)
