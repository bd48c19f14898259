"""The files of a run that grow: each line is returned once, a cut is noticed, and curves are thinned."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.ps.records.metrics import StepRecord
from lockstep.results.plots.curves import StepColumns
from lockstep.results.watch.run_files import LineFollower, curves


def line(step: int, loss: float = 1.0) -> StepRecord:
    return StepRecord(step=step, epoch=1, loss=loss, lr=0.1, samples=8, round_s=0.5)


def columns(*steps: int, loss: float = 1.0) -> StepColumns:
    made = StepColumns()
    made.extend([line(step, loss) for step in steps])
    return made


def test_steps_that_are_made_again_replace_the_old_ones_and_all_after_them() -> None:
    found = columns(0, 1, 2, 3)
    found.extend([line(2, 5.0), line(3, 6.0)])
    assert found["step"].tolist() == [0, 1, 2, 3]
    assert found["loss"].tolist() == [1.0, 1.0, 5.0, 6.0]
    found.extend([line(1, 7.0)])
    assert found["step"].tolist() == [0, 1]


def test_a_batch_of_lines_may_go_back_too() -> None:
    found = StepColumns()
    found.extend([line(0), line(1), line(2), line(1, 9.0), line(2, 8.0), line(3), line(0, 4.0)])
    assert found["step"].tolist() == [0]
    assert found["loss"].tolist() == [4.0]


def test_other_metrics_have_columns_from_the_step_on_that_has_them() -> None:
    found = columns(0, 1)
    found.extend([StepRecord(step=2, epoch=1, loss=1.0, lr=0.1, samples=8, metrics={"f1": 0.5})])
    assert found.others == ["f1"]
    np.testing.assert_array_equal(found["f1"], [np.nan, np.nan, 0.5])
    found.extend(map(line, range(3, 2000)))
    assert (found["f1"][2], found.count) == (0.5, 2000)
    assert np.isnan(found["f1"][3:]).all()


@given(
    losses=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300),
    points=st.integers(1, 50),
)
def test_a_curve_is_short_and_its_range_holds_every_value(losses: list[float], points: int) -> None:
    made = StepColumns()
    made.extend([line(step, loss) for step, loss in enumerate(losses)])
    found = curves(made, -math.inf, math.inf, points)
    assert len(found["step"]) <= points
    assert max(value for value in found["loss_max"] if value is not None) == max(losses)
    assert min(value for value in found["loss_min"] if value is not None) == min(losses)
    width = -(-len(losses) // points)
    means = [np.mean(losses[start : start + width]) for start in range(0, len(losses), width)]
    assert found["loss"] == pytest.approx(means)
    assert np.all(np.diff(np.array(found["step"], np.float64)) > 0)


def test_a_range_holds_its_ends() -> None:
    found = curves(columns(*range(10)), 3, 5, 100)
    assert found["step"] == [3, 4, 5]
    assert found["throughput"] == [16.0, 16.0, 16.0]


@pytest.mark.parametrize(("first", "last", "points"), [(20, 30, 5), (5, 3, 5), (0, 9, 0), (0, 9, -3), (math.nan, 9, 4)])
def test_an_empty_range_is_empty(first: float, last: float, points: int) -> None:
    assert curves(columns(*range(10)), first, last, points) == {"step": []}


def test_what_a_run_does_not_have_is_left_out_and_what_is_not_finite_is_none() -> None:
    found = curves(columns(0, 1, loss=math.nan), -math.inf, math.inf, 10)
    assert "accuracy" not in found
    assert "loss" not in found
    mixed = columns(0, 1)
    mixed.extend([line(2, math.inf)])
    assert curves(mixed, -math.inf, math.inf, 10)["loss"] == [1.0, 1.0, None]


def test_throughput_is_that_of_the_last_steps() -> None:
    assert StepColumns().throughput(4) == 0.0
    assert columns(*range(10)).throughput(4) == 16.0


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_only_whole_lines_are_returned_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    follower = LineFollower(path)
    assert follower.read().data == b""
    append(path, b"one\ntw")
    assert follower.read().data == b"one\n"
    assert follower.read().data == b""
    append(path, b"o\nthree\n")
    assert follower.read().data == b"two\nthree\n"


@pytest.mark.parametrize("rest", [b"", b"other\n", b"another line, so that it is longer than before\n"])
def test_a_file_that_was_cut_is_read_again(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "lines"
    follower = LineFollower(path)
    path.write_bytes(b"one\ntwo\n")
    follower.read()
    path.write_bytes(b"one\n" + rest)
    found = follower.read()
    assert found.is_restarted
    assert found.data == b"one\n" + rest


def test_a_file_that_is_gone_is_told_once_and_may_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    follower = LineFollower(path)
    path.write_bytes(b"one\n")
    follower.read()
    path.unlink()
    assert follower.read().is_restarted
    assert not follower.read().is_restarted
    path.write_bytes(b"two\n")
    assert follower.read().data == b"two\n"


def test_a_folder_in_its_place_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "lines").mkdir()
    assert LineFollower(tmp_path / "lines").read().data == b""


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b".") + b"\n"), max_size=40),
    most=st.integers(13, 60),
)
def test_a_long_file_comes_in_chunks_that_make_it_up(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], most: int
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "lines"
    path.write_bytes(b"".join(lines))
    follower, found = LineFollower(path, most), b""
    while True:
        new = follower.read()
        assert new.data.endswith(b"\n") or not new.data
        found += new.data
        if not new.has_more:
            break
    assert found == b"".join(lines)
