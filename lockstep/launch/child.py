"""A process that we start on this machine: its life, its log, and its end."""

import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lockstep.common.errors import ComputeError, DivergedError, FailureKind, RunError
from lockstep.common.runtime.clock import wall_time
from lockstep.common.runtime.environment import child_environment
from lockstep.common.runtime.numerics import Numerics, environment_with

#: How the names of logs end.
LOG = ".log"

#: What `lockstep` prints before the text of an error, at the start of a line.
ERROR_MARK = "error: "

#: Most lines of a log that are shown if it holds no error of ours.
TAIL_LINES = 20


@dataclass
class ProcessLog:
    """One process's part of a log file; before it is the output of the processes that it replaces."""

    path: Path
    #: Bytes before its part.
    begin: int = 0
    #: Bytes of the file that `new_lines` has returned, or that were there before.
    reported_bytes: int = 0

    @classmethod
    def at_end_of(cls, path: Path) -> "ProcessLog":
        """Return the log of a process that is about to write; the file is made if there is none."""
        with path.open("ab") as file:
            end = file.tell()
        return cls(path, end, end)

    def add(self, words: bytes) -> None:
        """Append what a process has written elsewhere."""
        with self.path.open("ab") as file:
            file.write(words)

    def last_error(self) -> str:
        """Return the text of our last error message, with all its lines; empty if there is none."""
        _, mark, words = ("\n" + self._text()).rpartition("\n" + ERROR_MARK)
        return words.strip() if mark else ""

    def last_message(self) -> str:
        """Return the last error, or else the traceback, or else the last lines."""
        text = self._text()
        traceback = text.rfind("Traceback (most recent call last)")
        tail = text[traceback:] if traceback >= 0 else "\n".join(text.splitlines()[-TAIL_LINES:])
        return self.last_error() or tail.strip()

    def new_lines(self) -> list[str]:
        """Return the lines written since the last call, without one that is not complete yet."""
        with self.path.open("rb") as file:
            file.seek(self.reported_bytes)
            whole, end, _ = file.read().rpartition(b"\n")
        self.reported_bytes += len(whole) + len(end)
        return whole.decode(errors="replace").splitlines()

    def _text(self) -> str:
        return self.path.read_bytes()[self.begin :].decode("utf-8", "replace")


def keep_logs(folder: Path, run: Path) -> None:
    """Move the logs in a folder into a run's folder, where they are appended to those of the run's earlier parts."""
    for log in sorted(folder.glob(f"*{LOG}")):
        target = run / log.name
        has_earlier = target.exists() and target.stat().st_size > 0
        with target.open("ab") as file, log.open("rb") as words:
            if has_earlier:
                file.write(f"--- the run was resumed, until {wall_time()} ---\n".encode())
            shutil.copyfileobj(words, file)
        log.unlink()


#: The errors of failures that have one of their own; the others are plain errors of a run.
ERRORS = {FailureKind.DIVERGED: DivergedError, FailureKind.COMPUTE: ComputeError}


class ExitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How a run failed, as its server writes it to the last line of its standard output."""

    kind: FailureKind
    text: str

    def error(self) -> RunError:
        """Return the error to raise."""
        return ERRORS.get(self.kind, RunError)(self.text)


def exit_record(output: bytes) -> ExitRecord | None:
    """Return the record on the last line of an output, None if there is none."""
    lines = output.splitlines()
    try:
        return msgspec.json.decode(lines[-1], type=ExitRecord) if lines else None
    except msgspec.MsgspecError:
        return None


@dataclass
class Child:
    """One child process; it ends by itself when our end of its standard input closes."""

    name: str
    process: subprocess.Popen[bytes]
    log: ProcessLog
    #: Whether we killed it, so that its death says nothing about it.
    is_killed_on_purpose: bool = False

    @classmethod
    def start(
        cls, name: str, arguments: list[str], log: Path, folder: Path | None = None, numerics: Numerics = "native"
    ) -> "Child":
        """Start `lockstep` with these arguments in `folder`, or where we are; its standard error is added to `log`."""
        process_log = ProcessLog.at_end_of(log)
        with log.open("ab") as errors:
            process = subprocess.Popen(
                # -P: the working folder is not on the path, where a `lockstep.py` of the user's would take our place.
                [sys.executable, "-P", "-m", "lockstep", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env=environment_with(numerics, child_environment()),
                # Ctrl-C in a terminal reaches the whole foreground group: we end the children ourselves, in order.
                start_new_session=True,
            )
        return cls(name, process, process_log)

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
        """Return its name and number."""
        return f"{self.name} (pid {self.pid})"

    def first_line(self) -> str:
        """Wait for the first line of its standard output; empty if it ended before."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def rest(self) -> bytes:
        """Return what a process that has ended has written to its standard output after the first line, once."""
        stdout = self.process.stdout
        return b"" if stdout is None or stdout.closed else stdout.read()

    def has_ended(self) -> bool:
        """Return whether the process is gone."""
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
        """Send SIGKILL to a process that works as it should."""
        self.is_killed_on_purpose = True
        self.process.kill()

    def lived_s(self, born_s: float, now: float) -> float:
        """Return how many seconds it lived, infinitely many if we killed it."""
        return math.inf if self.is_killed_on_purpose else now - born_s

    def end(self, grace_s: float) -> None:
        """Wait for the end, and after `grace_s` seconds kill; free what is held of the process."""
        if not self.wait(grace_s):
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def how_it_ended(self) -> str:
        """Return its exit code or signal in words."""
        code = self.code
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
