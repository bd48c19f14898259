"""Predictions are read off a run's result or a scaling bench's rows; what they say is the cost model's."""

from pathlib import Path

import msgspec
import pytest

from lockstep.bench.bench import heading, line
from lockstep.bench.predict import PredictionRow, basis_of_result, basis_of_rows, predict, read_basis
from lockstep.bench.scaling import ScalingRow
from lockstep.cli.bench import json_of
from lockstep.cli.main import run
from lockstep.ps.run.timing import Split
from tests.lockstep.bench.scaling_rows import scaling_row
from tests.lockstep.statuses import result

#: A gigabit, in bytes a second.
LINK = 125e6

#: A run whose worker computed 80 ms a step, of which the exchange took 10 and the update 6.
RUN = result(
    workers=1,
    parameters=1_000_000,
    split=Split(steps=9, compute_s=0.080, exchange_s=0.010, update_s=0.006, waiting_s=0.0),
)

#: The same in the rows of the scaling bench: 4 micro-batches per worker, 20 ms each.
ROWS = [
    scaling_row(workers=1, exchange_s=0.010, images_per_s=640.0),
    scaling_row(workers=2, exchange_s=0.020, images_per_s=1200.0),
    scaling_row(workers=1, exchange_s=0.5, batch=32),
    scaling_row(workers=1, exchange_s=0.5, transport="tcp"),
]


def test_a_run_predicts_the_same_step_on_more_machines() -> None:
    prediction = predict(basis_of_result(RUN), [1, 8], [1, 8], LINK)
    # 8 MB for each worker take 64 ms; each of eight workers has one micro-batch of 10 ms.
    assert [(row.servers, row.workers) for row in prediction.rows] == [(1, 1), (1, 8), (8, 1), (8, 8)]
    steps = [row.ms_per_step for row in prediction.rows]
    assert steps == pytest.approx([80 + 64 + 6, 10 + 512 + 6, 80 + 64 + 6 / 8, 10 + 64 + 6 / 8])
    assert prediction.rows[3].speedup == pytest.approx(steps[2] / steps[3])
    assert prediction.rows[1].link_share == pytest.approx(512 / steps[1])
    assert (prediction.basis.is_weak, prediction.link_text(), prediction.is_bound_by_link) == (False, "1 Gbit/s", True)
    assert prediction.basis.speeds == {1: RUN.images_per_s}


def test_rows_of_one_way_are_taken_together() -> None:
    basis = basis_of_rows(ROWS)
    assert [(point.workers, point.split.exchange_s) for point in basis.points] == [(1, 0.010), (2, 0.020)]
    assert basis.speeds == {1: 640.0, 2: 1200.0}
    assert basis.is_weak
    assert basis.name == "mlp, 64 samples each, shm"
    # Weak: 80 ms for any number of workers.
    (at,) = predict(basis, [16], [16], LINK).rows
    assert at.ms_per_step == pytest.approx(80 + 64 + 6 / 16)


def test_the_machine_that_was_measured_is_predicted_next_to() -> None:
    prediction = predict(basis_of_rows(ROWS), [1], [1], LINK)
    assert list(prediction.here) == list(range(1, 9))
    # 80 ms and 10 ms for each worker, until four share two cores.
    assert prediction.here[2] == pytest.approx(128 / 0.106)
    assert prediction.here[4] == pytest.approx(256 / (0.160 + 0.040 + 0.006))


def test_it_is_said_where_a_link_saturates_and_what_that_takes() -> None:
    prediction = predict(basis_of_result(RUN), [1, 100], [1, 4], LINK)
    one, *_ = (row.saturates_at for row in prediction.rows)
    shards = prediction.rows[-1].shards
    words = prediction.summary()
    name = "the 1 Gbit/s link of 1 server"
    assert words[0].startswith(f"{name} would saturate at {one} workers: a step takes twice as long as with one")
    assert words[1].startswith("the links of 4 servers would saturate at ")
    assert words[2] == f"100 workers would need {shards} shards to avoid that"
    fast = predict(basis_of_result(RUN), [2], [1], 1e15)
    assert not fast.is_bound_by_link
    assert fast.summary()[0].startswith("1 server would saturate at ")


def test_a_line_fits_its_heading() -> None:
    (row,) = predict(basis_of_result(RUN), [1024], [16], LINK).rows
    assert len(line(row)) == len(heading(PredictionRow)) <= 80


def test_the_command_reads_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file, rows_file, json_file = (tmp_path / name for name in ("result.json", "rows.json", "out.json"))
    run_file.write_bytes(msgspec.json.encode(RUN))
    rows_file.write_bytes(json_of(ROWS))
    ask = ["bench", "predict", "--workers", "1..8", "--to", str(json_file)]
    assert run([*ask, "--from", str(run_file), "--servers", "1,2", "--plot", str(tmp_path / "p.png")]) == 0
    rows = msgspec.json.decode(json_file.read_bytes(), type=list[PredictionRow])
    assert [(row.servers, row.workers) for row in rows] == [(s, w) for s in (1, 2) for w in (1, 2, 4, 8)]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert run([*ask, "--from", str(rows_file), "--batch", "32", "--link", "10Gbit"]) == 0
    message = capsys.readouterr().out
    assert (
        f"from lenet, 128 samples a step, ipc, measured with 1 worker on {basis_of_result(RUN).cores} cores" in message
    )
    assert "from mlp, 32 samples each, shm, measured with 1 worker on 2 cores" in message


def test_several_models_are_predicted_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows_file = tmp_path / "rows.json"
    rows_file.write_bytes(json_of([*ROWS, *(msgspec.structs.replace(row, model="cnn") for row in ROWS)]))
    ask = ["bench", "predict", "--workers", "4", "--servers", "1", "--from", str(rows_file), "--batch", "64", "--json"]
    assert run([*ask, "--model", "mlp,cnn"]) == 0
    rows = msgspec.json.decode(capsys.readouterr().out, type=list[PredictionRow])
    assert [row.basis for row in rows] == ["mlp, 64 samples each, shm", "cnn, 64 samples each, shm"]


@pytest.mark.slow
def test_without_a_file_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "predict", "--workers", "4", "--model", "linear", "--batch", "32", "--steps", "8"]) == 0
    assert capsys.readouterr().out.startswith("from linear, 32 samples each, ")


def test_files_that_are_of_no_use_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file.json"
    for text, message in [
        (b"{}", "is neither a run's result.json nor a file of `lockstep bench scaling --to FILE`"),
        (msgspec.json.encode(result(workers=0)), "has no times of an exchange (workers = 0"),
        (b"[]", "the scaling bench did not measure row"),
    ]:
        path.write_bytes(text)
        assert run(["bench", "predict", "--from", str(path)]) == 2
        assert message in capsys.readouterr().err
    path.write_bytes(json_of(ROWS))
    assert run(["bench", "predict", "--from", str(path), "--model", "cnn"]) == 2
    assert "did not measure cnn: expected one of mlp at 64, mlp at 32" in capsys.readouterr().err


def test_a_file_of_rows_can_be_narrowed(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(json_of(ROWS))
    assert [point.global_batch for point in read_basis(tmp_path / "rows.json", None, 32).points] == [32]
    assert isinstance(ROWS[0], ScalingRow)
