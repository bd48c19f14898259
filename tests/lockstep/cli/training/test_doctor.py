"""`lockstep doctor` as a person meets it: reports that fit, exit codes, JSON, and what cannot be examined."""

import json
from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.common.protocol.fingerprint import fingerprint
from tests.lockstep.tiny_data import write_tiny


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    (tmp_path / "good.toml").write_text("model = 'mlp'\ndata = 'tiny.npz'\nglobal_batch = 32\n")
    (tmp_path / "fast.toml").write_text("model = 'mlp'\ndata = 'tiny.npz'\nglobal_batch = 32\nlr = 40.0\n")
    (tmp_path / "crowd.toml").write_text("model = 'mlp'\ndata = 'tiny.npz'\nglobal_batch = 32\nworkers = 4\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["good.toml"], 0, "mlp on tiny.npz: no findings\n"),
        (["fast.toml"], 1, "first steps: in 4 steps at up to 40 the loss went from 2.33 to inf"),
        (["good.toml", "--lr", "40"], 1, "; run `lockstep find-lr`\n"),
        (["fast.toml", "--lr", "0.05"], 0, "mlp on tiny.npz: no findings\n"),
        (["crowd.toml"], 0, "mlp on tiny.npz: no findings\n"),
    ],
)
def test_a_job_is_examined(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    before = set(place.iterdir())
    assert run(["doctor", *arguments]) == code
    out, error = capsys.readouterr()
    assert text in out
    assert error == ""
    assert out.count("\n") == 1
    assert set(place.iterdir()) == before


def test_findings_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "fast.toml", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["subject"] == "mlp on tiny.npz"
    (finding,) = told["findings"]
    assert (finding["group"], finding["fix"]) == ("first steps", "run `lockstep find-lr`")
    assert finding["what"].startswith("in 4 steps at up to 40 the loss went from 2.33 to inf")


def test_the_versions_and_numerics_of_this_machine_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--report"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    here = fingerprint()
    assert (told["lockstep"], told["numpy"], told["contract"]) == (here.lockstep, here.numpy, str(here.contract))
    assert told["kernels"] == (here.kernels or "-")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--machine"], "the option '--machine' is gone: `lockstep doctor --report` prints versions and numerics"),
        (["--connect", "tcp://127.0.0.1:1", "good.toml"], "--connect does not examine a job: give one or the other"),
        (["--connect", "here"], "address 'here' is malformed"),
        (["gone.toml"], "cannot read the job file 'gone.toml'"),
        (["good.toml", "--model", "mlpp"], "model = 'mlpp' is not known (did you mean 'mlp'?)"),
        (["good.toml", "--data", "gone.npz"], "gone.npz: cannot be read"),
        (["good.toml", "--global-batch", "999"], "global_batch = 999 is more than the 160 training samples"),
        (["good.toml", "--initial", "gone"], "gone: cannot be read"),
    ],
)
def test_what_cannot_be_examined_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert run(["doctor", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"error: {text}")
    assert error.count("\n") == 1


def test_help_fits_80_columns_and_says_what_the_exit_codes_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "0 no findings, 1 findings" in " ".join(text.split())
