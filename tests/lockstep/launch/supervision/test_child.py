"""Children: their last message is what is shown, and they end by themselves with their parent."""

from pathlib import Path

import pytest

from lockstep.launch.supervision.child import TAIL_LINES, Child, ProcessLog, exit_message
from lockstep.launch.supervision.worker_supervisor import USAGE

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: boom'

#: What a log holds -> its end, for a process that has reported no error.
TAILS = {
    "a traceback": (f"joined\n{TRACEBACK}\n", TRACEBACK),
    "lines": ("no error: all is well\n", "no error: all is well"),
    "nothing": ("", ""),
    "bytes that are no text": ("\udcff\n", "\N{REPLACEMENT CHARACTER}"),
    "many lines": ("\n".join(map(str, range(100))), "\n".join(map(str, range(100 - TAIL_LINES, 100)))),
}


def ended(folder: Path, arguments: list[str]) -> Child:
    """Return a child that has ended."""
    child = Child.start("a worker", arguments, folder / "child.log")
    child.end(60.0)
    return child


@pytest.mark.parametrize(("text", "tail"), TAILS.values(), ids=TAILS)
def test_the_end_of_a_log_is_its_traceback_or_its_last_lines(tmp_path: Path, text: str, tail: str) -> None:
    log = ProcessLog.at_end_of(tmp_path / "log")
    log.add(text.encode(errors="surrogateescape"))
    assert log.tail() == tail


def test_how_it_ended_well(tmp_path: Path) -> None:
    good = ended(tmp_path, ["--version"])
    assert good.has_ended()
    assert good.how_it_ended() == "ended with exit code 0"


def test_the_error_that_a_process_reports_is_its_last_message(tmp_path: Path) -> None:
    missing, reports = str(tmp_path / "key"), ["--supervised", str(tmp_path)]
    child = ended(tmp_path, ["worker", "tcp://127.0.0.1:9", "--key", missing, *reports])
    assert child.code == USAGE
    assert child.failure is not None
    assert exit_message(child) == f"a worker (pid {child.pid}) ended with exit code 2: {child.failure.text}"
    assert missing in child.failure.text
    assert child.log.tail().startswith("error: ")


def test_of_a_process_that_reports_nothing_the_end_of_its_log_is_shown(tmp_path: Path) -> None:
    child = ended(tmp_path, ["worker"])
    assert child.failure is None
    assert exit_message(child) == f"a worker (pid {child.pid}) ended with exit code 2: {child.log.tail()}"


def test_a_folder_of_the_same_name_where_we_stand_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    assert ended(tmp_path, ["--version"]).code == 0


def test_news_are_the_lines_since_the_last_call(tmp_path: Path) -> None:
    log = ProcessLog.at_end_of(tmp_path / "log")
    log.add(b"one\ntwo\nhal")
    assert log.new_lines() == ["one", "two"]
    assert log.new_lines() == []
    log.add(b"f\n")
    assert log.new_lines() == ["half"]
