"""What local steps cost in accuracy: the same job, with other numbers of them."""

from pathlib import Path

import msgspec
import pytest

from lockstep.bench.bench import heading, line
from lockstep.bench.local_steps import LocalStepsBench, LocalStepsRow, curve_of, train
from lockstep.cli.main import run
from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from tests.lockstep.tiny_data import write_tiny


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A job of five steps an epoch on 160 samples."""
    path = tmp_path / "job.toml"
    data = write_tiny(tmp_path)
    path.write_text(
        f'model = "linear"\ndata = "{data}"\nglobal_batch = 32\nepochs = 2\nlr = 0.1\nweight_decay = 0.001\n'
    )
    return path


def rows_of(job_file: Path, tmp_path: Path, *flags: str) -> list[LocalStepsRow]:
    rows = tmp_path / "rows.json"
    assert run(["bench", "local-steps", "--job", str(job_file), "--to", str(rows), *flags]) == 0
    return msgspec.json.decode(rows.read_bytes(), type=list[LocalStepsRow])


def test_all_see_each_sample_equally_often_and_exchange_less_often(
    tmp_path: Path, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--local-steps", "1,5", "--micro-batches", "2,4", "--seeds", "2")
    rows = rows_of(job_file, tmp_path, *flags)
    assert [(row.micro_batches, row.local_steps, row.samples, row.steps) for row in rows] == [
        *((2, 1, 16, 10), (2, 5, 16, 2), (4, 1, 8, 10), (4, 5, 8, 2)),
    ]
    values = {"model": "linear", "data": str(tmp_path / "tiny.npz"), "global_batch": 32, "epochs": 2, "lr": 0.1}
    job = msgspec.convert({**values, "weight_decay": 0.001, "micro_batches": 2}, Job)
    scores = [train(msgspec.structs.replace(job, seed=seed), load(job.data))[1] for seed in (0, 1)]
    assert rows[0].score == pytest.approx(sum(score or 0.0 for score in scores) / 2)
    assert rows[0].scores == scores
    assert rows[0].deviation is not None
    assert [row.local_lr for row in rows] == [None, 0.1, None, 0.089]
    assert {(row.lr, row.momentum) for row in rows if row.local_steps > 1} == {(0.7, 0.6)}
    assert rows[0].curve[-1][0] == 2.0
    assert capsys.readouterr().out.splitlines() == [heading(LocalStepsRow), *map(line, rows)]


def test_values_that_are_given_count(tmp_path: Path, job_file: Path) -> None:
    flags = ("--local-steps", "5", "--micro-batches", "2", "--epochs", "1")
    (usual,), (outer,) = (rows_of(job_file, tmp_path, *flags, *more) for more in ((), ("--lr", "0.001")))
    assert (usual.steps, usual.curve[0]) == (1, outer.curve[0])
    assert usual.score != outer.score
    (inner,) = rows_of(job_file, tmp_path, *flags, "--local-lr", "0.2", "--momentum", "0")
    assert (inner.local_lr, inner.momentum) == (0.2, 0.0)
    assert inner.curve[0] != usual.curve[0]


def test_a_run_that_diverges_has_no_accuracy(tmp_path: Path, job_file: Path) -> None:
    job_file.write_text(job_file.read_text().replace("lr = 0.1", "lr = 1e30"))
    (row,) = rows_of(job_file, tmp_path, "--local-steps", "5", "--micro-batches", "2")
    assert (row.score, row.deviation, row.curve) == (None, None, [])
    assert "-" in line(row)


def test_a_curve_has_few_points_each_of_which_is_a_mean() -> None:
    curve = curve_of([float(step) for step in range(1000)], 100)
    assert len(curve) < 50
    assert curve[0] == (0.06, 2.5)
    assert curve[-1][0] == 10.0


def test_there_is_a_panel_for_each_number_of_micro_batches(tmp_path: Path, job_file: Path) -> None:
    bench = LocalStepsBench(job_file=job_file)
    rows = rows_of(job_file, tmp_path, "--local-steps", "1,5", "--micro-batches", "2,4")
    ((first, second),) = bench.panels(rows)
    assert (first.title, second.title) == ("linear, 2 micro-batches", "linear, 4 micro-batches")
    assert [series.name.split(",")[0] for series in first.series] == ["1 local step", "5 local steps"]
