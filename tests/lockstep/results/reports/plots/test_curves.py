"""A run's figures, read back from its lines: finished or not, restarted, damaged."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.errors import FileFormatError
from lockstep.results.reports.plots.curves import read_curves, smoothed
from tests.lockstep.results.reports.plots.records import write_steps


def test_steps_and_epochs_are_read_in_order(tmp_path: Path) -> None:
    write_steps(tmp_path / "run", range(6))
    course = read_curves(tmp_path / "run")
    assert course.name == "run"
    assert course.column("step").tolist() == [0, 1, 2, 3, 4, 5]
    assert course.column("loss").tolist() == [2 / (step + 1) for step in range(6)]
    assert course.seconds.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert [epoch.test_accuracy for epoch in course.epochs] == [0.75]
    assert course.ends == {1: 4, 2: 6}


def test_a_step_that_was_made_again_counts_as_it_was_made_last(tmp_path: Path) -> None:
    write_steps(tmp_path, range(6))
    write_steps(tmp_path, range(4, 8), loss=30.0)
    course = read_curves(tmp_path)
    assert course.column("step").tolist() == list(range(8))
    assert course.column("loss")[3:6].tolist() == [0.5, 6.0, 5.0]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    write_steps(tmp_path, range(2))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind":"step","epo')
    assert read_curves(tmp_path).steps.count == 2


def test_what_is_no_record_is_reported_with_its_line(tmp_path: Path) -> None:
    write_steps(tmp_path, range(2))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(
            b'{"kind":"failure","failure":"not plotted","weights_after_steps":2}\n{"kind":"step","step":"two"}\n'
        )
    with pytest.raises(FileFormatError, match="line 4 is not a record of a run: "):
        read_curves(tmp_path)


def test_a_folder_without_steps_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=f"{os.strerror(errno.ENOENT)}: expected the folder of a run"):
        read_curves(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(FileFormatError, match="has no step yet"):
        read_curves(tmp_path)


def test_smoothing_is_the_mean_of_what_is_in_the_window() -> None:
    values = np.array([4.0, 2.0, 6.0, 8.0])
    assert smoothed(values, 2).tolist() == [4.0, 3.0, 4.0, 7.0]
    assert smoothed(values, 1).tolist() == values.tolist()
    assert smoothed(values, 100).tolist() == [4.0, 3.0, 4.0, 5.0]
