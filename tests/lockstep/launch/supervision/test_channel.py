"""Reports from a child to its parent: they come whole and in order, and nothing else is taken for one."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lockstep.common.errors import ComputeError, DivergedError, FailureKind, RunError, UnreachableError
from lockstep.common.runtime.notice import notice
from lockstep.launch.supervision.channel import (
    ChildReport,
    EndReport,
    ListeningReport,
    NoticeReport,
    ParentLink,
    ReportReader,
)

LISTENING = ListeningReport(address="tcp://h:1")

#: A child that prints as a model may, and reports.
CHILD = """
import os
from lockstep.common.runtime.notice import warning
from lockstep.launch.supervision.channel import EndReport, ListeningReport, ParentLink
link = ParentLink()
link.say("before")
link.open()
print("a line that a model prints", flush=True)
os.write(1, b"written past Python\\n")
link.report(ListeningReport(address="tcp://h:1"))
link.say("a line")
link.say(warning("take care"))
link.report(EndReport(text="two\\nlines"))
"""


@pytest.fixture
def pipe() -> Iterator[tuple[ReportReader, int]]:
    """Return a reader, and the end of its pipe that a child would have."""
    reads, writes = os.pipe()
    yield ReportReader(reads), writes
    os.close(reads)


def test_reports_come_apart_from_what_is_printed() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True)
    printed = ["before", "a line that a model prints", "written past Python", "a line", "warning: take care"]
    assert child.stderr.decode().splitlines() == printed
    reads, writes = os.pipe()
    os.write(writes, child.stdout)
    os.close(writes)
    reader = ReportReader(reads)
    assert reader.read() == [LISTENING, NoticeReport(text="warning: take care"), EndReport(text="two\nlines")]
    assert reader.is_at_end
    assert reader.read(None) is None
    os.close(reads)


@pytest.mark.parametrize("cut", [1, 20])
def test_a_report_counts_once_it_is_whole(pipe: tuple[ReportReader, int], cut: int) -> None:
    reader, writes = pipe
    line = b'{"type":"listening","address":"tcp://h:1"}\n'
    os.write(writes, line[:cut])
    assert reader.read() == []
    os.write(writes, line[cut:] + line)
    assert reader.read() == [LISTENING, LISTENING]
    assert not reader.is_at_end
    os.close(writes)


@pytest.mark.parametrize("line", [b"", b"no report", b'{"type": "unheard of"}', b'{"type": "ended", "kind": "odd"}'])
def test_what_is_no_report_is_left_out(pipe: tuple[ReportReader, int], line: bytes) -> None:
    reader, writes = pipe
    os.write(writes, line + b'\n{"type":"notice","text":"a"}\n')
    os.close(writes)
    assert reader.read(None) == [NoticeReport(text="a")]


def test_a_process_without_a_parent_reports_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    link, reports = ParentLink(), list[ChildReport]([LISTENING])
    for report in reports:
        link.report(report)
    link.say(notice("all is well"))
    assert capfd.readouterr() == ("", "notice: all is well\n")


@pytest.mark.parametrize(
    ("error", "kind", "raised"),
    [
        (DivergedError("why"), FailureKind.DIVERGED, DivergedError),
        (ComputeError("why"), FailureKind.COMPUTE, ComputeError),
        (UnreachableError("why"), None, RunError),
    ],
)
def test_a_failure_keeps_its_kind(error: RunError, kind: FailureKind | None, raised: type[RunError]) -> None:
    report = EndReport.of(error)
    assert report == EndReport(kind=kind, text="why")
    assert repr(report.error()) == repr(raised("why"))


def test_a_parent_that_is_gone_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(60.0) == 0
