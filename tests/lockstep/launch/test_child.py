"""Children: their last message is what is shown, and they end by themselves with their parent."""

from pathlib import Path

import msgspec
import pytest

from lockstep.common.errors import DivergedError, RunError, UnreachableError
from lockstep.launch.child import TAIL_LINES, Child, ExitRecord, exit_message, exit_record

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: boom'

LAST_MESSAGES = {
    "an error": ("joined\nerror: no such file\n", "no such file"),
    "the first line": ("error: no such file\n", "no such file"),
    "the last of two": ("error: one\nmore\nerror: two\n", "two"),
    "with all its lines": (f"joined\nerror: a piece raised:\n{TRACEBACK}\n", f"a piece raised:\n{TRACEBACK}"),
    "a traceback": (f"joined\n{TRACEBACK}\n", TRACEBACK),
    "an error within a line": ("no error: all is well\n", "no error: all is well"),
    "nothing": ("", ""),
    "bytes that are no text": ("\udcff\n", "\N{REPLACEMENT CHARACTER}"),
}


def ended(folder: Path, log: str, arguments: list[str]) -> Child:
    """Return a child that has ended; its log is replaced by `log`."""
    child = Child.start("a worker", arguments, folder / "child.log")
    child.end(60.0)
    (folder / "child.log").write_text(log, encoding="utf-8", errors="surrogateescape")
    return child


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Child:
    return ended(tmp_path_factory.mktemp("child"), "", ["--version"])


@pytest.mark.parametrize(("log", "words"), LAST_MESSAGES.values(), ids=LAST_MESSAGES)
def test_last_words(good: Child, log: str, words: str) -> None:
    good.log.path.write_text(log, encoding="utf-8", errors="surrogateescape")
    assert good.log.last_message() == words


def test_a_long_log_without_an_error_is_cut(good: Child) -> None:
    good.log.path.write_text("\n".join(map(str, range(100))), encoding="utf-8")
    assert good.log.last_message().splitlines() == [str(number) for number in range(100 - TAIL_LINES, 100)]
    assert good.log.last_error() == ""


def test_how_it_ended_well(good: Child) -> None:
    assert good.has_ended()
    assert good.how_it_ended() == "ended with exit code 0"


def test_an_obituary_has_the_last_words(tmp_path: Path) -> None:
    child = ended(tmp_path, "error: why\n", ["worker"])
    assert exit_message(child) == f"a worker (pid {child.pid}) ended with exit code 2: why"


def test_a_folder_of_the_same_name_where_we_stand_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    assert ended(tmp_path, "", ["--version"]).code == 0


def test_news_are_the_lines_since_the_last_call(good: Child) -> None:
    good.log.path.write_text("one\ntwo\nhal")
    good.log.reported_bytes = 0
    assert good.log.new_lines() == ["one", "two"]
    assert good.log.new_lines() == []
    good.log.path.write_text("one\ntwo\nhalf\n")
    assert good.log.new_lines() == ["half"]


def test_how_a_run_failed_is_read_from_the_last_line_of_its_servers_output() -> None:
    record = ExitRecord.of(DivergedError("the loss is not finite"))
    found = exit_record(b"a line before\n" + msgspec.json.encode(record) + b"\n")
    assert found == record
    assert type(record.error()) is DivergedError
    assert type(ExitRecord.of(UnreachableError("")).error()) is RunError


@pytest.mark.parametrize("output", [b"", b"no record\n", b'{"kind": "unheard of", "text": ""}\n'])
def test_without_a_record_there_is_none(output: bytes) -> None:
    assert exit_record(output) is None
