"""A process that we start: its log, its end, its last words."""

import math
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.environment import child_environment

#: What `lockstep` prints before the text of an error, at the start of a line.
ERROR_MARK = "error: "

#: Most lines of a log that are shown where it holds no error of ours.
TAIL_LINES = 20


@dataclass
class Child:
    """One child process; it ends by itself when our end of its standard input closes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    #: Where its part of the log begins: before it are the words of those whose place it took.
    _begin: int = 0
    #: Bytes of the log that `news` has returned, or that were there before.
    _told_bytes: int = 0
    #: Whether we killed it, so that its death says nothing about it.
    is_killed_on_purpose: bool = False

    @classmethod
    def start(cls, name: str, arguments: list[str], log: Path) -> "Child":
        """Start `lockstep` with these arguments; what it prints to standard error is added to `log`."""
        with log.open("ab") as errors:
            begin = errors.tell()
            process = subprocess.Popen(
                # -P: the working folder is not on the path, where a `common.py` of the user's would take our place.
                [sys.executable, "-P", "-m", "lockstep", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(),
                # Ctrl-C in a terminal reaches the whole foreground group: we end the children ourselves, in order.
                start_new_session=True,
            )
        return cls(name, process, log, begin, begin)

    @property
    def output(self) -> IO[bytes]:
        """The child's standard output."""
        assert self.process.stdout is not None
        return self.process.stdout

    def has_ended(self) -> bool:
        """Tell whether the process is gone."""
        return self.process.poll() is not None

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; return whether it came in time."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ask_to_end(self) -> None:
        """Send SIGTERM to a process that still runs."""
        if not self.has_ended():
            self.process.terminate()

    def kill_on_purpose(self) -> None:
        """Send SIGKILL to a process that has done nothing to deserve it."""
        self.is_killed_on_purpose = True
        self.process.kill()

    def lived_s(self, born_s: float, now: float) -> float:
        """Return for how many seconds it lived, if it were not for us."""
        return math.inf if self.is_killed_on_purpose else now - born_s

    def make_end(self, grace_s: float) -> None:
        """Wait for the end, and after `grace_s` seconds kill; free what is held of the process."""
        if not self.wait(grace_s):
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def how_it_ended(self) -> str:
        """Return the exit code or signal in words."""
        code = self.process.returncode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def last_error(self) -> str:
        """Return the text of the last error of ours in the log, with all its lines; empty where there is none."""
        _, mark, words = ("\n" + self._log_text()).rpartition("\n" + ERROR_MARK)
        return words.strip() if mark else ""

    def last_words(self) -> str:
        """Return the last error in the log, or else the traceback, or else the last lines."""
        text = self._log_text()
        traceback = text.rfind("Traceback (most recent call last)")
        tail = text[traceback:] if traceback >= 0 else "\n".join(text.splitlines()[-TAIL_LINES:])
        return self.last_error() or tail.strip()

    def news(self) -> list[str]:
        """Return the lines that the log has got since the last call, but for one that has no end yet."""
        with self.log.open("rb") as file:
            file.seek(self._told_bytes)
            whole, end, _ = file.read().rpartition(b"\n")
        self._told_bytes += len(whole) + len(end)
        return whole.decode(errors="replace").splitlines()

    def _log_text(self) -> str:
        return self.log.read_bytes()[self._begin :].decode("utf-8", "replace")
