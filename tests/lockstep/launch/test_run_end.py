"""What is said of a run that fails or is interrupted, by what its folder holds."""

import shlex
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from lockstep.cli.root import Commands
from lockstep.common.errors import DivergedError, RunError
from lockstep.launch.run_end import PICTURE, draw_picture, kept_on_failure, next_steps
from lockstep.ps.records.run_folder import CHECKPOINTS, RESULT, WEIGHTS
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
    (tmp_path / CHECKPOINTS / "step-0000000012.safetensors").touch()
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


@pytest.mark.parametrize(("r2", "kind"), [(None, "each class"), (0.9, "each target")])
def test_what_to_try_next_can_be_pasted(r2: float | None, kind: str) -> None:
    lines = next_steps(msgspec.structs.replace(result(), test_r2=r2), Path("runs/my run"))
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
