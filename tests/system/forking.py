"""Processes of `lockstep` for tests, forked from one that has imported the commands: that saves most of a start's CPU.

They differ from `python -m lockstep` as little as the processes that a run forks (tests/lockstep/launch/supervision).
Each has a folder and an environment of its own.
"""

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

import msgspec

from lockstep.cli.template import be_template, become
from lockstep.common.runtime.environment import child_environment
from lockstep.launch.supervision.template import KILLED_S, PATIENCE_S, ROOM, ForkedProcess, ForkRequest, ProcessTemplate
from tests.architecture.source import ROOT

#: The commands that are imported before processes are forked.
COMMANDS = ("train", "server", "shard", "worker", "node", "status", "evaluate", "predict", "verify", "doctor")

#: In the environment, marks all processes of one test.
MARK = "LOCKSTEP_TEST"

#: A mark of the same length, which is replaced.
NO_MARK = "0" * 16


class PlacedRequest(ForkRequest, frozen=True):
    """A process with an environment of its own."""

    environ: dict[str, str]


def begin(text: bytes, streams: Sequence[int]) -> NoReturn:
    """Be the process that a test has requested."""
    environ = msgspec.msgpack.decode(text, type=PlacedRequest).environ
    os.environ.clear()
    os.environ.update(environ)
    tempfile.tempdir = None  # which was found in the template's
    show_mark(environ.get(MARK, NO_MARK))
    become(text, streams)


def show_mark(mark: str) -> None:
    """Replace the mark in what the system shows as this process's environment, which is the template's."""
    fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    begin_at, end_at = int(fields[47]), int(fields[48])  # `env_start` and `env_end` of proc(5)
    shown = ctypes.string_at(begin_at, end_at - begin_at)
    at = shown.index(f"{MARK}={NO_MARK}".encode()) + len(MARK) + 1
    ctypes.memmove(begin_at + at, mark.encode(), len(NO_MARK))


class Forked(subprocess.Popen[str]):
    """A forked process with the interface of `subprocess.Popen`, as far as tests need it."""

    def __init__(self, process: ForkedProcess, words: Sequence[str], stdout: IO[str], stderr: IO[str]) -> None:
        self.process, self.args, self.pid = process, words, process.pid
        self.stdin, self.stdout, self.stderr = None, stdout, stderr
        self._texts = list[str]()
        self._readers = list[threading.Thread]()

    @property
    def returncode(self) -> int | None:  # type: ignore[override]  # that of the process
        return self.process.returncode

    def poll(self) -> int | None:
        try:
            return self.process.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        return self.process.wait(timeout)

    def kill(self) -> None:
        self.process.kill()

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:  # noqa: A002
        """Read to the end of both streams, and wait for the end."""
        assert self.stdout is not None
        assert self.stderr is not None
        if not self._readers:
            self._texts = ["", ""]
            self._readers = [
                threading.Thread(target=partial(self._read, number, stream), daemon=True)
                for number, stream in enumerate((self.stdout, self.stderr))
            ]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.process.wait(timeout)
        found, self._texts = self._texts, ["", ""]
        return found[0], found[1]

    def _read(self, number: int, stream: IO[str]) -> None:
        if not stream.closed:
            with stream:
                self._texts[number] = stream.read()

    def __del__(self) -> None:
        pass  # its template has waited for it


@contextmanager
def forking() -> Iterator[ProcessTemplate]:
    """Start a template for tests, and end it."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        template = subprocess.Popen(
            [sys.executable, "-m", "tests.system.forking", str(theirs.fileno()), ROOM],
            stdin=subprocess.DEVNULL,
            env={**child_environment(), MARK: NO_MARK},
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    try:
        control.settimeout(PATIENCE_S)
        yield ProcessTemplate(control)
    finally:
        control.close()
        template.wait(KILLED_S)


def fork(template: ProcessTemplate, words: Sequence[str], folder: Path, environ: Mapping[str, str]) -> Forked:
    """Start `lockstep` with these arguments, in a folder and with an environment."""
    (out, stdout), (error, stderr) = os.pipe(), os.pipe()
    stdin = os.open(os.devnull, os.O_RDONLY)
    try:
        request = PlacedRequest(list(words), str(folder), dict(environ))
        process = template.fork(request, (stdin, stdout, stderr))
    finally:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
    assert process is not None, "the template of the tests is gone"
    return Forked(process, ["lockstep", *words], open(out), open(error))


if __name__ == "__main__":
    be_template(socket.socket(fileno=int(sys.argv[1])), COMMANDS, begin)
