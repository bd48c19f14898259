"""`lockstep find-lr`: the figures of a range test, and what cannot be done."""

import json
from pathlib import Path

import pytest

from lockstep.cli.main import run
from tests.lockstep.tiny_data import write_tiny

BRIEF = ["--model", "linear", "--global-batch", "32", "--micro-batches", "2"]


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    return ["--data", str(write_tiny(tmp_path))]


def test_three_figures(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["find-lr", *BRIEF, *data, "--tries", "60"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "for sgd and batches of 32 samples:"
    lines = [line.rsplit(maxsplit=1) for line in out.splitlines()]
    assert [name for name, _ in lines] == ["suggestion", "steepest", "at minimum"]
    assert all(1e-6 <= float(rate) <= 10.0 for _, rate in lines)


def test_as_json_with_a_picture(tmp_path: Path, data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "rates.png"
    assert run(["find-lr", *BRIEF, *data, "--tries", "40", "--json", "--plot", str(plot)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rates"]) == len(found["losses"]) == 40
    assert found["rates"][-1] == pytest.approx(10.0)
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_a_job_file_gives_the_rest(tmp_path: Path, data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.toml"
    job.write_text(f'model = "linear"\ndata = "{data[1]}"\nglobal_batch = 32\nmicro_batches = 2\n')
    told = []
    for arguments in ([str(job)], [*BRIEF, *data, "--lr", "0.7", "--schedule", "cosine"]):
        assert run(["find-lr", *arguments, "--tries", "30", "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out)["losses"][0])
    # The first loss is that of the first weights: neither rate nor schedule of the job has a part in it.
    assert told[0] == told[1]


def test_too_few_steps_are_refused(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["find-lr", *BRIEF, *data, "--tries", "9"]) == 2
    assert capsys.readouterr().err.startswith("error: rates from 1e-06 to 10.0 in 9 steps: expected")


def test_a_table_is_packed_first_and_is_no_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table, model = tmp_path / "table.csv", tmp_path / "net.py"
    table.write_text("a,b,kind\n" + "".join(f"{i % 7},{i % 5},{'no' if i % 2 else 'yes'}\n" for i in range(100)))
    model.write_text("from lockstep import nn\n\n\ndef build():\n    return nn.Linear(2, 2)\n")
    described = ["--data", str(table), "--target", "kind", "--model", f"{model}:build", "--global-batch", "20"]
    assert run(["find-lr", *described, "--tries", "40", "--json"]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["suggestion"] > 0.0
    assert "packed 80 samples" in error
    assert run(["doctor", *described, "--epochs", "2"]) in (0, 1)
    assert capsys.readouterr().out.count("\n") == 1
    assert run(["doctor", "--connect", "tcp://127.0.0.1:1", "--target", "kind"]) == 2
    assert "--connect does not examine a job" in capsys.readouterr().err
