"""A process that we start on this machine: its life, its log, and its end."""

import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common.runtime.clock import wall_time
from common.runtime.environment import child_environment

#: How the names of logs end.
LOG = ".log"

#: What `lockstep` prints before the text of an error, at the start of a line.
ERROR_MARK = "error: "

#: Most lines of a log that are shown where it holds no error of ours.
TAIL_LINES = 20


@dataclass
class ProcessLog:
    """One process's part of a log file; before it are the words of those whose place it took."""

    path: Path
    #: Bytes before its part.
    begin: int = 0
    #: Bytes of the file that `news` has returned, or that were there before.
    told_bytes: int = 0

    @classmethod
    def at_end_of(cls, path: Path) -> "ProcessLog":
        """Return the log of a process that is about to write; the file is made where there is none."""
        with path.open("ab") as file:
            end = file.tell()
        return cls(path, end, end)

    def add(self, words: bytes) -> None:
        """Write what a process has said elsewhere."""
        with self.path.open("ab") as file:
            file.write(words)

    def last_error(self) -> str:
        """Return the text of the last error of ours, with all its lines; empty where there is none."""
        _, mark, words = ("\n" + self._text()).rpartition("\n" + ERROR_MARK)
        return words.strip() if mark else ""

    def last_message(self) -> str:
        """Return the last error, or else the traceback, or else the last lines."""
        text = self._text()
        traceback = text.rfind("Traceback (most recent call last)")
        tail = text[traceback:] if traceback >= 0 else "\n".join(text.splitlines()[-TAIL_LINES:])
        return self.last_error() or tail.strip()

    def news(self) -> list[str]:
        """Return the lines that came since the last call, but for one that has no end yet."""
        with self.path.open("rb") as file:
            file.seek(self.told_bytes)
            whole, end, _ = file.read().rpartition(b"\n")
        self.told_bytes += len(whole) + len(end)
        return whole.decode(errors="replace").splitlines()

    def _text(self) -> str:
        return self.path.read_bytes()[self.begin :].decode("utf-8", "replace")


def keep_logs(folder: Path, run: Path) -> None:
    """Move the logs in a folder into a run's, where they are added to those of the run's earlier parts."""
    for log in sorted(folder.glob(f"*{LOG}")):
        target = run / log.name
        has_earlier = target.exists() and target.stat().st_size > 0
        with target.open("ab") as file, log.open("rb") as words:
            if has_earlier:
                file.write(f"--- the run was gone on with, until {wall_time()} ---\n".encode())
            shutil.copyfileobj(words, file)
        log.unlink()


@dataclass
class Child:
    """One child process; it ends by itself when our end of its standard input closes."""

    name: str
    process: subprocess.Popen[bytes]
    log: ProcessLog
    #: Whether we killed it, so that its death says nothing about it.
    is_killed_on_purpose: bool = False

    @classmethod
    def start(cls, name: str, arguments: list[str], log: Path, folder: Path | None = None) -> "Child":
        """Start `lockstep` with these arguments in `folder`, or where we are; its standard error is added to `log`."""
        told = ProcessLog.at_end_of(log)
        with log.open("ab") as errors:
            process = subprocess.Popen(
                # -P: the working folder is not on the path, where a `common.py` of the user's would take our place.
                [sys.executable, "-P", "-m", "lockstep", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env=child_environment(),
                # Ctrl-C in a terminal reaches the whole foreground group: we end the children ourselves, in order.
                start_new_session=True,
            )
        return cls(name, process, told)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self.process.pid

    @property
    def code(self) -> int:
        """The exit code of one that has ended, negative for a signal."""
        assert self.process.returncode is not None
        return self.process.returncode

    def named(self) -> str:
        """Return who it is."""
        return f"{self.name} (pid {self.pid})"

    def first_line(self) -> str:
        """Wait for the first line of its standard output; empty where it ended before."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

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

    def send(self, number: signal.Signals) -> None:
        """Send a signal to a process that still runs."""
        if not self.has_ended():
            os.kill(self.pid, number)

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
        code = self.code
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
