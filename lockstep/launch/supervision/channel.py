"""The reports of a process to the process that has started it: JSON lines in a pipe, which is its standard output.

A report is what a program decides on; a log is for people. It does not know how processes are started.
"""

import os
import select
import sys
from contextlib import suppress
from dataclasses import dataclass, field

import click
import msgspec

from lockstep.common.errors import ComputeError, DivergedError, FailureKind, RunError
from lockstep.common.files.sanitize import printable
from lockstep.common.runtime.notice import Notice

#: The file descriptors of standard output and standard error.
STDOUT, STDERR = 1, 2

#: Most bytes that are read at once.
READ_BYTES = 65536

#: The errors of failures that have one of their own; the others are plain errors of a run.
ERRORS = {FailureKind.DIVERGED: DivergedError, FailureKind.COMPUTE: ComputeError}


class ListeningReport(msgspec.Struct, frozen=True, kw_only=True, tag="listening"):
    """The address at which a process listens, as another process on this machine dials it."""

    address: str


class NoticeReport(msgspec.Struct, frozen=True, kw_only=True, tag="notice"):
    """A line that a person is to see at once."""

    text: str


class EndReport(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The error with which a process ends."""

    #: None if the failure has no error of its own.
    kind: FailureKind | None = None
    text: str

    @classmethod
    def of(cls, error: BaseException) -> "EndReport":
        """Return the report of an error."""
        return cls(kind=next((kind for kind, known in ERRORS.items() if type(error) is known), None), text=str(error))

    def error(self) -> RunError:
        """Return the error to raise."""
        return RunError(self.text) if self.kind is None else ERRORS.get(self.kind, RunError)(self.text)


ChildReport = ListeningReport | NoticeReport | EndReport

_DECODER = msgspec.json.Decoder(ChildReport)


@dataclass
class ParentLink:
    """This process's end of the channel; reports go nowhere until it is opened, if a person has started the process."""

    _descriptor: int = -1

    def open(self) -> None:
        """Take the standard output for reports. Printed output, as that of a model, goes to the log instead."""
        sys.stdout.flush()
        self._descriptor = os.dup(STDOUT)
        os.dup2(STDERR, STDOUT)

    def report(self, report: ChildReport) -> None:
        """Report; nothing happens if the parent is gone, whose end has another way to reach this process."""
        left = msgspec.json.encode(report) + b"\n" if self._descriptor >= 0 else b""
        with suppress(OSError):
            while left:
                left = left[os.write(self._descriptor, left) :]

    def say(self, text: str) -> None:
        """Print a line to standard error, which is the log of a process with a parent; report it if it is a notice."""
        click.echo(printable(text), err=True)
        if isinstance(text, Notice):
            self.report(NoticeReport(text=str(text)))


@dataclass
class ReportReader:
    """The parent's end of the channel of one child."""

    descriptor: int
    #: Whether the child has closed its end, with its own end at the latest.
    is_at_end: bool = False
    #: The beginning of a report that is not whole yet.
    _begun: bytes = b""
    _poll: select.poll = field(default_factory=select.poll)

    def __post_init__(self) -> None:
        self._poll.register(self.descriptor, select.POLLIN)

    def read(self, timeout_s: float | None = 0.0) -> list[ChildReport] | None:
        """Return the reports that have come, None at the end.

        Wait for some for so long, and with None until some come.
        """
        if self.is_at_end:
            return None
        found = list[ChildReport]()
        wait_ms = None if timeout_s is None else 1000.0 * timeout_s
        while not self.is_at_end and self._poll.poll(wait_ms):
            read = os.read(self.descriptor, READ_BYTES)
            self.is_at_end = not read
            *lines, self._begun = (self._begun + read).split(b"\n")
            found += [report for line in lines if (report := decode_report(line)) is not None]
            wait_ms = 0.0
        return found


def decode_report(line: bytes) -> ChildReport | None:
    """Return the report of a line, None for anything else that was printed before the channel was open."""
    try:
        return _DECODER.decode(line)
    except msgspec.MsgspecError:
        return None
