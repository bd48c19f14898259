"""The lines of `metrics.jsonl`: what is written is read back."""

from pathlib import Path

import pytest

from lockstep.common.errors import FileFormatError
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.records.metrics import (
    METRICS,
    FailureRecord,
    Record,
    RunMetrics,
    StepRecord,
    encode_record,
    read_metrics,
)

STEP = StepRecord(epoch=1, step=0, loss=2.0, accuracy=0.5, lr=0.1, samples=8, round_s=0.5, sums_bytes=64)
STEP_LINE = (
    b'{"kind":"step","epoch":1,"step":0,"loss":2.0,"accuracy":0.5,"lr":0.1,"samples":8,"round_s":0.5,"mean_s":0.0,'
    b'"slowest_s":0.0,"update_s":0.0,"sums_bytes":64,"weights_bytes":0}'
)
FAILURE_LINE = b'{"kind":"failure","failure":"x","weights_after_steps":3}'
EPOCH = EpochRecord(
    epoch=1, loss=1.0, accuracy=0.5, test_loss=0.25, test_accuracy=0.75, wall_s=3.0, weights_sha256="ab" * 32
)


def read(folder: Path, *lines: bytes) -> RunMetrics:
    (folder / METRICS).write_bytes(b"".join(line + b"\n" for line in lines))
    return read_metrics(folder)


@pytest.mark.parametrize("record", [STEP, StepRecord(epoch=1, step=0, loss=2.0, r2=0.5, lr=0.1, samples=8)])
def test_a_step_is_read_as_it_was_written(tmp_path: Path, record: StepRecord) -> None:
    assert read(tmp_path, encode_record(record)) == RunMetrics([record], [])


def test_an_epoch_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read(tmp_path, encode_record(EPOCH)) == RunMetrics([], [EPOCH])


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (STEP, STEP_LINE),
        (FailureRecord(failure="x", weights_after_steps=3), FAILURE_LINE),
        (FailureRecord(failure="x", weights_after_steps=3, cause="audit"), FAILURE_LINE[:-1] + b',"cause":"audit"}'),
    ],
)
def test_the_lines_on_disk_stay_as_they_are(record: Record, line: bytes) -> None:
    assert encode_record(record) == line


def test_a_step_that_was_made_again_counts_as_it_was_made_last(tmp_path: Path) -> None:
    def line(step: int, loss: float) -> bytes:
        return encode_record(StepRecord(epoch=1, step=step, loss=loss, lr=0.1, samples=8))

    read_back = read(tmp_path, line(0, 3.0), line(1, 2.0), line(0, 1.0))
    assert [(step.step, step.loss) for step in read_back.steps] == [(0, 1.0), (1, 2.0)]


def test_a_line_that_is_still_being_written_does_not_count(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(encode_record(STEP) + b"\n" + encode_record(EPOCH)[:20])
    assert read_metrics(tmp_path) == RunMetrics([STEP], [])


def test_other_lines_are_left_out_and_damaged_ones_are_not(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"kind":"other"}', encode_record(STEP)).steps == [STEP]
    with pytest.raises(FileFormatError, match="line 2 is not a record of a run"):
        read(tmp_path, encode_record(STEP), b'{"kind":"epoch","epoch":"one"}')


def test_a_folder_without_figures_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="expected the folder of a run"):
        read_metrics(tmp_path)
