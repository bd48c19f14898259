"""A stack of its own for a simulated process, on which it can pause in the middle of an action.

It is a thread, but of all strands and their callers at most one runs at a time, and callers decide which one. So a
run is as deterministic as on one stack.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field


class Killed(BaseException):  # so that no process catches it
    """The end of a process in the middle of an action."""


def _held() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class Strand:
    """Runs actions, one after the other, each of which may suspend itself."""

    is_suspended: bool = False
    #: Whether it runs, and its caller waits.
    is_running: bool = False
    _action: Callable[[], object] | None = None
    _raised: BaseException | None = None
    _is_unwinding: bool = False
    _thread: threading.Thread | None = None
    #: Released to let the strand go on, and by it to let its caller go on.
    _go: threading.Lock = field(default_factory=_held)
    _back: threading.Lock = field(default_factory=_held)

    def run(self, action: Callable[[], object]) -> bool:
        """Begin with an action; return whether it has ended. Its exceptions are raised here."""
        self._action = action
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        return self.resume()

    def resume(self) -> bool:
        """Let a suspended action go on; return whether it has ended."""
        self.is_running = True
        self._go.release()
        self._back.acquire()
        self.is_running = False
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised
        return not self.is_suspended

    def suspend(self) -> None:
        """Let the caller go on until it resumes this action, which calls this."""
        self.is_suspended = True
        self._back.release()
        self._go.acquire()
        self.is_suspended = False
        if self._is_unwinding:
            raise Killed

    def end(self) -> None:
        """End it; a suspended action ends where it is."""
        if self._thread is None:
            return
        if self.is_suspended:
            self._is_unwinding = True
            with suppress(Killed):
                self.resume()
        self._action = None
        self._go.release()
        self._thread.join()
        self._thread = None

    def _work(self) -> None:
        while True:
            self._go.acquire()
            if self._action is None:
                return
            try:
                self._action()
            except BaseException as error:  # noqa: BLE001  # raised again in the caller
                self._raised = error
            self._back.release()
