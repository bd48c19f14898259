"""The logs of a run's processes go into its folder, those of each part after those of the parts before."""

from pathlib import Path

from lockstep.launch.process_log import keep_logs


def test_logs_are_added_to_those_of_earlier_parts(tmp_path: Path) -> None:
    ours, run = tmp_path / "ours", tmp_path / "run"
    for folder in (ours, run):
        folder.mkdir()
    (run / "server.log").write_text("first\n")
    (run / "worker-0.log").touch()
    for name, words in (("server.log", "second\n"), ("worker-0.log", "a\n"), ("worker-1.log", "b\n"), ("job.toml", "")):
        (ours / name).write_text(words)
    keep_logs(ours, run)
    first, mark, second = (run / "server.log").read_text().splitlines()
    assert (first, second) == ("first", "second")
    assert mark.startswith("--- the run was gone on with, until ")
    assert (run / "worker-0.log").read_text() == "a\n"
    assert (run / "worker-1.log").read_text() == "b\n"
    assert [path.name for path in ours.iterdir()] == ["job.toml"]


def test_what_another_process_has_taken_is_nobodys_fault(tmp_path: Path) -> None:
    keep_logs(tmp_path / "gone", tmp_path)
    assert list(tmp_path.iterdir()) == []
