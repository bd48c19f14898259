"""What is said of a run that fails or is interrupted, by what its folder holds."""

import errno
import os
import shlex
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from lockstep.cli.main import Commands
from lockstep.common.errors import DivergedError, RunError
from lockstep.launch.run_end import PICTURE, draw_picture, keep_logs, kept_on_failure, next_steps
from lockstep.ps.records.run_folder import CHECKPOINTS, JOB, RESULT, WEIGHTS
from lockstep.runs.own_command import own_command
from tests.lockstep.small_runs import small_run
from tests.lockstep.statuses import result


def said(folder: Path, error: BaseException) -> str:
    """Return what is said of a run that ends with an error."""
    page = StringIO()
    with pytest.raises(type(error)), kept_on_failure(Console(file=page, width=40), folder):
        raise error
    return page.getvalue()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunError("worker 1 is gone")])
def test_what_there_is_to_go_on_with(tmp_path: Path, error: BaseException) -> None:
    assert said(tmp_path, error) == ""
    (tmp_path / WEIGHTS).touch()
    assert said(tmp_path, error) == f"the last good weights are kept in {tmp_path}\n"
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / "step-00000012.safetensors").touch()
    kept = tmp_path / CHECKPOINTS / "step-00000012.safetensors"
    assert said(tmp_path, error).endswith(f"\nthe weights after step 12 are kept in {kept}\n")
    (tmp_path / JOB).write_text("[job]\n")
    command = own_command("train", "--resume", tmp_path)
    assert said(tmp_path, error).endswith(f"\nresume after step 12 with: {command}\n")


def test_a_run_that_ended_well_a_moment_before_has_nothing_to_go_on_with(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).touch()
    (tmp_path / RESULT).touch()
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / "step-0000000012.safetensors").touch()
    assert said(tmp_path, KeyboardInterrupt()) == f"the run had already finished: its result is in {tmp_path}\n"


def test_a_run_that_diverged_would_do_so_again(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / "step-0000000012.safetensors").touch()
    assert said(tmp_path, DivergedError("the loss is not finite")) == ""


@pytest.mark.parametrize(
    ("accuracy", "r2", "kind"), [(0.5, None, "each class"), (None, 0.9, "each target"), (None, None, "the test set")]
)
def test_what_to_try_next_can_be_pasted(accuracy: float | None, r2: float | None, kind: str) -> None:
    done = msgspec.structs.replace(result(), test_accuracy=accuracy, test_r2=r2)
    lines = next_steps(done, Path("runs/my run"))
    assert lines[2].startswith(kind)
    words = [shlex.split(line[16:])[-2:] for line in lines[2:]]
    assert words == [[command, "runs/my run"] for command in ("evaluate", "watch", "verify")]
    assert {command for command, _ in words} <= set(Commands())


def test_a_run_leaves_its_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: .venv/bin/pip install -e '.[plot]'")
    folder = small_run(tmp_path, epochs=1).folder
    assert draw_picture(folder)
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]


def test_a_picture_that_cannot_be_drawn_harms_nothing(tmp_path: Path) -> None:
    assert not draw_picture(tmp_path / "gone")


def test_logs_are_added_to_those_of_earlier_parts(tmp_path: Path) -> None:
    ours, run = tmp_path / "ours", tmp_path / "run"
    for folder in (ours, run):
        folder.mkdir()
    (run / JOB).write_text("model = 'mlp'")
    (run / "server.log").write_text("first\n")
    (run / "worker-0.log").touch()
    for name, words in (("server.log", "second\n"), ("worker-0.log", "a\n"), ("worker-1.log", "b\n"), ("token", "")):
        (ours / name).write_text(words)
    keep_logs(ours, run)
    first, mark, second = (run / "server.log").read_text().splitlines()
    assert (first, second) == ("first", "second")
    assert mark.startswith("--- the run was resumed, until ")
    assert (run / "worker-0.log").read_text() == "a\n"
    assert (run / "worker-1.log").read_text() == "b\n"
    assert [path.name for path in ours.iterdir()] == ["token"]


def test_logs_that_the_disk_has_no_room_for_are_reported_and_hide_no_other_end(tmp_path: Path) -> None:
    ours, run = tmp_path / "ours", tmp_path / "run"
    for folder in (ours, run):
        folder.mkdir()
    (run / JOB).write_text("model = 'mlp'")
    (ours / "server.log").write_text("x\n")
    # Whatever is written there finds no room.
    (run / "server.log").symlink_to("/dev/full")
    assert keep_logs(ours, run) == (
        f"warning: cannot write '{run / 'server.log'}': {os.strerror(errno.ENOSPC)}: the logs of this run are not kept"
    )
    (run / "server.log").unlink()
    assert keep_logs(ours, run) == ""
    assert (run / "server.log").read_text() == "x\n"


def test_what_another_process_has_taken_is_nobodys_fault(tmp_path: Path) -> None:
    (tmp_path / JOB).write_text("model = 'mlp'")
    keep_logs(tmp_path / "gone", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [JOB]


def test_a_run_that_has_not_begun_takes_no_logs(tmp_path: Path) -> None:
    ours, run = tmp_path / "ours", tmp_path / "run"
    for folder in (ours, run):
        folder.mkdir()
    (ours / "server.log").touch()
    (run / JOB).touch()
    keep_logs(ours, run)
    assert [path.name for path in run.iterdir()] == [JOB]
