"""A command that computes begins again in a process with its job's numerics, before it has left anything behind."""

from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.common.runtime.numerics import Numerics
from tests.lockstep.common.runtime.test_numerics import needs_portable
from tests.lockstep.tiny_data import write_tiny

JOB = ["--model", "linear", "--data", "tiny.npz", "--global-batch", "48", "--steps", "4"]

#: Commands that compute or update in their own process, for a run that has portable numerics.
COMMANDS = {
    "train alone": ["train", "--workers", "0", "--numerics", "portable", *JOB],
    "server": ["server", "--bind", "tcp://127.0.0.1:0", "--numerics", "portable", *JOB],
    "worker": ["worker", "tcp://127.0.0.1:1", "--numerics", "portable"],
    "shard": ["shard", "tcp://127.0.0.1:1", "--numerics", "portable"],
    "doctor": ["doctor", "--numerics", "portable", *JOB],
    "bench": ["bench", "step", "--model", "linear", "--batch", "32", "--numerics", "portable"],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    return tmp_path


@needs_portable
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_begins_again_with_what_it_was_given(place: Path, command: list[str]) -> None:
    restarted: list[tuple[list[str], Numerics]] = []

    def restart(arguments: list[str], numerics: Numerics) -> int:
        restarted.append((arguments, numerics))
        return 7

    assert run(command, restart) == 7
    assert restarted == [(command, "portable")]
    assert [path.name for path in place.iterdir()] == ["tiny.npz"]


@pytest.mark.parametrize("numerics", [[], ["--numerics", "native"]])
def test_a_native_job_begins_where_it_is(place: Path, capsys: pytest.CaptureFixture[str], numerics: list[str]) -> None:
    assert run(["train", "--workers", "0", "--no-picture", *JOB, *numerics]) == 0
    assert "numerics        native, NumPy" in capsys.readouterr().out


def test_other_numerics_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("job.toml").write_text("numerics = 'fast'")
    assert run(["train", "--job", "job.toml"]) == 2
    assert capsys.readouterr().err == "error: numerics = 'fast': expected one of native, portable\n"
