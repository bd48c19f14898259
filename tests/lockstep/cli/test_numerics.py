"""What numerics a command's job has, as it says them or not; and that a command leaves those of its process alone."""

from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.common.runtime.numerics import own_numerics
from tests.lockstep.tiny_data import write_tiny

JOB = ["--model", "linear", "--data", "tiny.npz", "--global-batch", "48", "--steps", "4"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("numerics", "shown"),
    [
        ([], "portable, contract 1"),
        (["--set", "numerics=portable"], "portable, contract 1"),
        (["--set", "numerics=native"], "native, NumPy"),
    ],
)
def test_a_command_computes_with_those_of_its_job_and_gives_them_back(
    place: Path, capsys: pytest.CaptureFixture[str], numerics: list[str], shown: str
) -> None:
    assert run(["train", "--workers", "0", "--no-picture", *JOB, *numerics]) == 0
    told = capsys.readouterr()
    assert f"numerics        {shown}" in told.out
    assert "notice: numerics" not in told.out + told.err
    assert own_numerics() == "portable"


def test_what_is_recorded_says_which(place: Path) -> None:
    assert run(["train", "--workers", "0", "--no-picture", *JOB, "--run-dir", "run"]) == 0
    assert 'numerics = "portable"' in Path("run/job.toml").read_text()


def test_other_numerics_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("job.toml").write_text("numerics = 'fast'")
    assert run(["train", "--job", "job.toml"]) == 2
    assert capsys.readouterr().err == "error: numerics = 'fast': expected one of native, portable\n"
