"""The end of this process: by a signal, which ends it as Ctrl-C does, or with the process that started it."""

import math
import os
import select
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lockstep.common.errors import LockstepError
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.exit_codes import ExitCode
from lockstep.common.runtime.interrupts import interrupt
from lockstep.launch.supervision.child import LOG

#: The handler of a signal: a function, a constant of the system, or None if Python does not know it.
Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

#: The signals that end a process in an orderly way.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds after an interrupt in which another one changes nothing: longer than tidying up takes.
TIDY_S = 5.0


@dataclass
class InterruptOnce:
    """A signal handler: raises `KeyboardInterrupt`, and lets the signals be that come while we tidy up after it.

    For SIGTERM it raises `Terminated`, which is one.
    """

    clock: Clock
    #: When it last raised.
    _raised: float = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = self.clock.now()
        if now - self._raised >= TIDY_S:
            self._raised = now
            interrupt(is_terminated=number == signal.SIGTERM)


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as SIGINT does, and SIGINT even if the shell had it ignored."""
    handler = InterruptOnce(SystemClock())
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    # `nohup` ignores it, and is to be obeyed.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, handler)


def ignore_signals() -> dict[signal.Signals, Handler]:
    """Let no signal but SIGKILL affect this process; return the handlers that were there."""
    # Blocked first, which also handles pending signals: Python complains of a signal whose handler is gone by then.
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


#: Seconds for an orderly end after the parent is gone.
GRACE_S = 3.0

#: The file descriptor of standard input.
STDIN = 0


@contextmanager
def ends_with_parent(folder: Path | None, rescue: Callable[[], object] | None = None) -> Iterator[None]:
    """Watch standard input, a pipe that the parent keeps open: its end means that the parent is gone.

    Then this process is interrupted, and `folder`, which the parent can no longer remove, is removed at the end. The
    server calls `rescue` first, which keeps the logs in that folder; the others leave this to the server. An error that
    happens then is an interrupt too: whichever process is the first removes the folder, and others miss their files.
    Without a folder, a person has started this process, and nothing is watched.
    """
    if folder is None:
        yield
        return
    watch = threading.Thread(target=_watch, args=(folder, rescue), name="parent watch", daemon=True)
    try:
        # Within the `try`: the parent may be gone already.
        watch.start()
        yield
    except (LockstepError, OSError):
        if _is_parent_gone():
            raise KeyboardInterrupt from None
        raise
    finally:
        with uninterrupted():
            # Asked again: what ended us may have been the parent's end too, before the thread saw it.
            if _is_parent_gone():
                _sweep(folder, rescue)


def _is_parent_gone() -> bool:
    poll = select.poll()
    poll.register(STDIN, select.POLLHUP)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _watch(folder: Path, rescue: Callable[[], object] | None) -> None:
    # Not through `sys.stdin`: its lock, held by a daemon thread, would abort the interpreter at its end.
    while os.read(STDIN, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    _sweep(folder, rescue)
    os._exit(ExitCode.INTERRUPTED)


def _sweep(folder: Path, rescue: Callable[[], object] | None) -> None:
    if rescue is not None:
        with suppress(OSError):
            rescue()
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != LOG:
                path.unlink()
        folder.rmdir()
