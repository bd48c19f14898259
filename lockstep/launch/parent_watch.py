"""Ends this process when the one that started it is gone, however it went: nothing is left running or lying about."""

import os
import select
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lockstep.launch.process_log import LOG, keep_logs
from lockstep.launch.signals import uninterrupted
from lockstep.runs.run_dir import has_begun

#: Seconds for an orderly end after the parent is gone.
GRACE_S = 3.0

#: The file descriptor of standard input.
STDIN = 0


@contextmanager
def held(folder: Path | None = None, run: Path | None = None) -> Iterator[None]:
    """Watch standard input, a pipe that the parent keeps open: its end means that the parent is gone.

    Then this process is interrupted, and `folder`, which the parent can no longer remove, is removed at the end. The
    server moves the logs that lie in it into the folder of its `run`; the others leave them to it.
    """
    lifeline = threading.Thread(target=_watch, args=(folder, run), name="lifeline", daemon=True)
    try:
        # Within the `try`: the parent may be gone already.
        lifeline.start()
        yield
    finally:
        with uninterrupted():
            # Asked anew: what ended us may have been the parent's end too, before the thread saw it.
            if _is_cut():
                _sweep(folder, run)


def _is_cut() -> bool:
    poll = select.poll()
    poll.register(STDIN, select.POLLHUP)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _watch(folder: Path | None, run: Path | None) -> None:
    # Not through `sys.stdin`: its lock, held by a daemon thread, would abort the interpreter at its end.
    while os.read(STDIN, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    _sweep(folder, run)
    os._exit(130)


def _sweep(folder: Path | None, run: Path | None) -> None:
    if folder is None:
        return
    if run is not None:
        with suppress(OSError):
            if has_begun(run):
                keep_logs(folder, run)
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(OSError):
        for path in folder.iterdir():
            if path.suffix != LOG:
                path.unlink()
        folder.rmdir()
