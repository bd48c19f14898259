"""Starts processes by forking one that has imported what they need, which takes a tenth of the time of a new one.

That process, the template, has no thread, and no socket but the one to its owner, so a fork of it is like a new
process. The template waits for the processes that it has forked, and reports how they end.
"""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from lockstep.common.runtime.environment import child_environment
from lockstep.common.runtime.interrupts import held_back

#: Most bytes of a message between a template and its owner.
MOST_BYTES = 65536

#: Seconds to wait for a template, which may still be importing, before it counts as lost.
PATIENCE_S = 30.0

#: Seconds to wait for the end of a process that was killed: one that the system holds, as for a lost disk, ends later.
KILLED_S = 10.0

#: An argument of the template that is only room for the commands of its processes, which tools such as `ps` show.
ROOM = " " * 4096


class ForkRequest(msgspec.Struct, frozen=True):
    """A process to fork, whose standard streams come along."""

    #: The arguments of `lockstep`.
    words: list[str]
    #: The folder to run in, empty for the template's.
    folder: str


class ForkReport(msgspec.Struct, frozen=True):
    """A process was forked, and its descriptor comes along, or it has ended."""

    pid: int
    #: As `returncode` of `subprocess`; None at the start.
    code: int | None = None


@dataclass
class ForkedProcess:
    """A process that a template has forked, with the part of the interface of `subprocess.Popen` that is needed."""

    template: "ProcessTemplate"
    pid: int
    #: Refers to the process, and can be read once that has ended.
    descriptor: int
    returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; `TimeoutExpired` if the process does not end in time."""
        if self.returncode is None:
            poll = select.poll()
            poll.register(self.descriptor, select.POLLIN)
            if not poll.poll(None if timeout is None else 1000.0 * timeout):
                raise subprocess.TimeoutExpired("lockstep", timeout or 0.0)
            os.close(self.descriptor)
            self.returncode = self.template.code_of(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send the process a signal if it still runs: its template may have seen its end before we do."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, number)

    def kill(self) -> None:
        """Kill the process if it still runs."""
        self.send_signal(signal.SIGKILL)


@dataclass
class ProcessTemplate:
    """The owner's end of a template."""

    control: socket.socket
    #: The exit codes that were reported and not asked for yet.
    _codes: dict[int, int] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def of(cls, *commands: str, data: str = "") -> Iterator["ProcessTemplate | None"]:
        """Start a template that imports these commands and reads that dataset, if any, and end it.

        None if the system cannot fork in this way.
        """
        if not hasattr(os, "pidfd_open"):
            yield None
            return
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lockstep.cli.template", str(theirs.fileno()), data, *commands, ROOM],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(child_environment()),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            control.settimeout(PATIENCE_S)
            yield cls(control)
        finally:
            control.close()
            # Still importing, it would only find out later.
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILLED_S)

    def fork(self, request: ForkRequest, streams: Sequence[int]) -> ForkedProcess | None:
        """Start a process with these standard input, output and error; None if the template is lost."""
        process = None
        try:
            with held_back(), suppress(OSError):
                process = self._fork(request, streams)
        except KeyboardInterrupt:
            # It came meanwhile, and the caller does not learn of the process.
            if process is not None:
                process.kill()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(KILLED_S)
            raise
        return process

    def _fork(self, request: ForkRequest, streams: Sequence[int]) -> ForkedProcess | None:
        socket.send_fds(self.control, [msgspec.msgpack.encode(request)], streams)
        while (found := self._receive()) is not None:
            report, descriptors = found
            if descriptors:
                return ForkedProcess(self, report.pid, descriptors[0])
        return None

    def code_of(self, pid: int) -> int:
        """Return the exit code of a process that has ended; if the template cannot report it, that of a killed one."""
        with suppress(OSError):
            while pid not in self._codes and self._receive() is not None:
                continue
        return self._codes.pop(pid, -signal.SIGKILL)

    def _receive(self) -> tuple[ForkReport, list[int]] | None:
        """Return the next report with the descriptors that came along; None if the template is gone."""
        text, descriptors, _, _ = socket.recv_fds(self.control, MOST_BYTES, 1)
        if not text:
            return None
        report = msgspec.msgpack.decode(text, type=ForkReport)
        if report.code is not None:
            self._codes[report.pid] = report.code
        return report, descriptors
