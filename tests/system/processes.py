"""Real processes of `lockstep` in a place of their own, and whatever is left of them."""

import json
import os
import resource
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lockstep.common.runtime.environment import KERNELS_VARIABLE, child_environment
from lockstep.launch.supervision.template import ProcessTemplate
from tests.system.forking import MARK, NO_MARK, fork

#: Longest that a test waits until everything is gone after an interrupt: only what hangs takes so long.
GONE_S = 60.0

#: Longest that a test waits for a process that should end by itself.
PATIENCE_S = 300.0

#: Variables that are read while Python starts or modules are imported: by then, a forked process has done that.
READ_AT_START = frozenset({"PYTHONPATH", "OPENBLAS_CORETYPE", KERNELS_VARIABLE})


def result_in(run: Path) -> dict[str, Any]:
    """Return the result that a run has written into its folder."""
    found: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return found


def digest_in(run: Path) -> str:
    """Return the digest of the weights of a run in a folder."""
    return str(result_in(run)["weights_sha256"])


@dataclass
class Place:
    """A working folder, and a folder for temporary files that is short enough for sockets."""

    folder: Path
    temporary: Path
    #: The process that others are forked from, None to start an interpreter for each.
    template: ProcessTemplate | None = None
    #: Stands in the environment of all that is started here, and of what that starts.
    mark: str = field(default_factory=lambda: secrets.token_hex(len(NO_MARK) // 2))
    started: list["Process"] = field(default_factory=list)

    def start(
        self,
        *arguments: str,
        file_bytes: int | None = None,
        open_files: int | None = None,
        within: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
    ) -> "Process":
        """Start `lockstep` with these arguments, as the leader of a group of its own.

        With `file_bytes`, no file that it or its children write can be longer, and with `open_files`, none of them has
        more files open. `within` comes before the command, and `environ` is added to its environment. Such a
        process is not forked, unless the environment is read late.
        """
        environment = {**child_environment(), "TMPDIR": str(self.temporary), MARK: self.mark, **(environ or {})}
        is_plain = file_bytes is None and open_files is None and not within and not READ_AT_START & set(environ or {})
        if is_plain and self.template is not None:
            self.started.append(Process(fork(self.template, arguments, self.folder, environment)))
            return self.started[-1]

        def limit() -> None:
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
            if open_files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

        process = subprocess.Popen(
            [*within, sys.executable, "-P", "-m", "lockstep", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environment,
            start_new_session=True,
            preexec_fn=limit,
        )
        self.started.append(Process(process))
        return self.started[-1]

    def serve(self, *flags: str, bind: str = "") -> tuple["Process", str]:
        """Start a server, in the folder `run` unless the flags name another; return it and its address."""
        server = self.start("server", "--run-dir", "run", "--bind", bind or self.address(), *flags)
        return server, server.line_with("  lockstep worker ").split()[2]

    def train(self, *flags: str, within_s: float = PATIENCE_S) -> str:
        """Train to a good end that leaves nothing, in the folder `run` unless flags name another; return the output."""
        code, out, error = self.start("train", "--run-dir", "run", *flags).end(within_s)
        assert (code, error) == (0, ""), (code, out, error)
        assert self.is_empty(GONE_S)
        return out

    def result(self, name: str = "run") -> dict[str, Any]:
        """Return the result that a run in the folder has written."""
        return result_in(self.folder / name)

    def digest(self, name: str = "run") -> str:
        """Return the digest of the weights of a run in the folder."""
        return digest_in(self.folder / name)

    def address(self) -> str:
        """Return an address that is nobody's."""
        return f"ipc://{self.temporary}/{len(self.started)}.sock"

    def pids(self, command: str = "") -> list[int]:
        """Return the processes started here, and by those, whose command line holds `command`."""
        return [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if f"{MARK}={self.mark}".encode() in _read(pid, "environ").split(b"\0")
            and command.encode() in _read(pid, "cmdline").replace(b"\0", b" ")
        ]

    def is_empty(self, within_s: float) -> bool:
        """Tell whether all processes are gone in time, and the folder for temporary files has nothing left in it."""
        return all(is_gone(pid, within_s) for pid in self.pids()) and not list(self.temporary.iterdir())

    def clear(self) -> None:
        """Kill what is left."""
        for pid in self.pids():
            with suppress(ProcessLookupError):  # it may have ended since it was found
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.popen.communicate()


@dataclass
class Process:
    """One process that a test has started."""

    popen: subprocess.Popen[str]

    def lines(self) -> Iterator[str]:
        """Return what it prints, line by line as it comes, until it ends."""
        assert self.popen.stdout is not None
        return (line.rstrip("\n") for line in self.popen.stdout)

    def line_with(self, text: str) -> str:
        """Wait for a line that holds `text`; return it."""
        assert self.popen.stdout is not None
        return line_with(text, self.popen.stdout, PATIENCE_S)

    def error_with(self, text: str) -> str:
        """Wait for a line of standard error that holds `text`; return it."""
        assert self.popen.stderr is not None
        return line_with(text, self.popen.stderr, PATIENCE_S)

    def end(self, within_s: float = PATIENCE_S) -> tuple[int, str, str]:
        """Wait for the end; return the exit code, and what is left of standard output and standard error."""
        out, error = self.popen.communicate(timeout=within_s)
        return self.popen.returncode, out, error

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end for so long; tell whether it came."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def interrupt(self) -> str:
        """Interrupt it, which ends it as a shell has it; return what is left of its output."""
        self.send(signal.SIGINT)
        code, out, error = self.end(GONE_S)
        assert code == 130, (code, out, error)
        return out


def line_with(text: str, stream: IO[str], within_s: float) -> str:
    """Wait for a line that holds `text`; return it. AssertionError, with what came, if it does not come in time."""
    until, seen = time.monotonic() + within_s, list[str]()
    while line := _next_line(stream, until - time.monotonic(), f"no line with {text!r} in {within_s:g} s", seen):
        if text in line:
            return line.rstrip("\n")
        seen.append(line.rstrip("\n"))
    raise AssertionError(f"ended without {text!r}: {seen}")


def _next_line(stream: IO[str], within_s: float, complaint: str, seen: list[str]) -> str:
    # A thread for each line: `select` does not see what the stream has read ahead, and one for all would read on.
    came = list[str]()
    thread = threading.Thread(target=lambda: came.append(stream.readline()), daemon=True)
    thread.start()
    thread.join(max(0.0, within_s))
    if not came:
        raise AssertionError(f"{complaint}: {seen}")
    return came[0]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def is_gone(pid: int, within_s: float) -> bool:
    """Wait for the end of a process that need not be a child of ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)
