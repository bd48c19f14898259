"""What the plots show: lines, bars and texts of their axes, and which cannot be made."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: .venv/bin/pip install -e '.[plot]'")

from matplotlib.lines import Line2D

from lockstep import nn
from lockstep.common.data.columns import Column
from lockstep.common.data.dataset import Dataset
from lockstep.common.errors import ModelError
from lockstep.common.files.sanitize import cut
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.job.tally import Tally
from lockstep.results.evaluation.assessment import Assessment
from lockstep.results.evaluation.figures import MOST_NAME
from lockstep.results.plots.curves import Floats, RunCurves, parts_of, read_curves, read_timeline
from lockstep.results.plots.results import (
    confusion_matrix,
    first_images,
    first_layer,
    regression_outputs,
    worst_mistakes,
)
from lockstep.results.plots.style import logarithmic, new_figure
from lockstep.results.plots.timeline import UNUSED, timeline
from lockstep.results.plots.training import learning, throughput
from tests.lockstep.results.plots.records import LEDGER, write_ledger, write_steps


def courses(folder: Path, *names: str) -> list[RunCurves]:
    for name in names:
        write_steps(folder / name, range(8))
    return [read_curves(folder / name) for name in names]


def xs(line: Line2D) -> Floats:
    return np.asarray(line.get_xdata(), dtype=np.float64)


def ys(line: Line2D) -> Floats:
    return np.asarray(line.get_ydata(), dtype=np.float64)


def test_learning_has_a_line_for_training_and_marks_for_tests(tmp_path: Path) -> None:
    figure = learning(courses(tmp_path, "a", "b"))
    loss, accuracy, rate = figure.axes
    training, tests = loss.get_lines()[:2]
    assert training.get_label() == "a: training"
    np.testing.assert_allclose(ys(training), [2 / (step + 1) for step in range(8)])
    assert xs(tests).tolist() == [4, 8]
    assert ys(accuracy.get_lines()[1]).tolist() == [0.75, 0.75]
    assert len(rate.get_lines()) == 2
    # The first run's line is wider: equal runs lie exactly on one another.
    assert training.get_linewidth() > loss.get_lines()[2].get_linewidth()


def test_validations_have_marks_of_their_own(tmp_path: Path) -> None:
    write_steps(tmp_path / "a", range(8), validation=(0.125, 0.875))
    loss, accuracy, _ = learning([read_curves(tmp_path / "a")]).axes
    marks = loss.get_lines()[2]
    assert marks.get_label() == "a: validation"
    assert (xs(marks).tolist(), ys(marks).tolist()) == ([4, 8], [0.125, 0.125])
    assert ys(accuracy.get_lines()[2]).tolist() == [0.875, 0.875]


def test_validations_of_a_regression_have_marks_too(tmp_path: Path) -> None:
    write_steps(tmp_path / "a", range(8), validation=(0.125, 0.875), score="r2")
    _, r2, _ = learning([read_curves(tmp_path / "a")]).axes
    assert ys(r2.get_lines()[2]).tolist() == [0.875, 0.875]


def test_runs_of_both_kinds_have_their_scores_in_one_panel(tmp_path: Path) -> None:
    write_steps(tmp_path / "houses", range(8), validation=(0.125, 0.875), score="r2")
    write_steps(tmp_path / "digits", range(4))
    (tmp_path / "houses" / "job.toml").write_text('loss = "mse"\n')
    (tmp_path / "digits" / "job.toml").write_text("epochs = 1\n")
    loss, score, _ = learning([read_curves(tmp_path / name) for name in ("houses", "digits")]).axes
    assert [line.get_label() for line in score.get_lines()][::3] == ["houses: training", "digits: training"]
    assert score.get_title() == "R² or accuracy"
    assert score.get_ylabel() == "share of the variance or correct samples"
    assert loss.get_ylabel() == "mean squared error or cross-entropy"


@pytest.mark.parametrize(
    ("loss", "name"), [("l1", "mean absolute error"), ("smooth-l1", "smooth-l1"), ("my.py:pinball", "pinball")]
)
def test_the_axis_of_the_loss_has_the_name_of_the_loss(tmp_path: Path, loss: str, name: str) -> None:
    write_steps(tmp_path / "a", range(8), score="r2")
    (tmp_path / "a" / "job.toml").write_text(f'loss = "{loss}"\n')
    assert learning([read_curves(tmp_path / "a")]).axes[0].get_ylabel() == name


def test_a_run_without_a_score_has_no_panel_of_it(tmp_path: Path) -> None:
    write_steps(tmp_path / "a", range(8), score="")
    assert [axes.get_title() for axes in learning([read_curves(tmp_path / "a")]).axes] == ["loss", "learning rate"]


def test_an_r2_that_ends_below_0_is_in_sight(tmp_path: Path) -> None:
    write_steps(tmp_path / "a", range(8), score="r2")
    run = read_curves(tmp_path / "a")
    run.epochs = [msgspec.structs.replace(epoch, test_r2=-13.9) for epoch in run.epochs]
    _, r2, _ = learning([run]).axes
    assert r2.get_ylim()[0] < -13.9 < 0.75 < r2.get_ylim()[1]


def test_an_r2_that_was_below_0_at_first_leaves_the_space_to_what_followed(tmp_path: Path) -> None:
    write_steps(tmp_path / "a", range(8), score="r2")
    run = read_curves(tmp_path / "a")
    run.epochs[0] = msgspec.structs.replace(run.epochs[0], test_r2=-13.9)
    _, r2, _ = learning([run]).axes
    assert r2.get_ylim()[0] == 0.0


def test_parts_of_a_step_add_up(tmp_path: Path) -> None:
    (course,) = courses(tmp_path, "a")
    parts = parts_of(course.steps)
    assert {name: round(float(values[1]), 9) for name, values in parts.items()} == {
        "compute": 0.2,
        "exchange": 0.1,
        "update": 0.1,
        "waiting": 0.1,
    }
    np.testing.assert_allclose(np.sum(list(parts.values()), axis=0)[1:], 0.5)


def test_throughput_is_samples_a_second(tmp_path: Path) -> None:
    figure = throughput(courses(tmp_path, "a", "b"))
    speed, *panels = figure.axes
    np.testing.assert_allclose(ys(speed.get_lines()[0]), np.full(8, 16.0))
    assert [axes.get_title(loc="left") for axes in panels] == ["time of a step, a", "time of a step, b"]


def test_a_ledger_without_times_shows_the_whole_run_and_what_was_not_used(tmp_path: Path) -> None:
    (course,) = courses(tmp_path, "run")
    write_ledger(tmp_path / "run", LEDGER)
    whole, _scale = timeline(course, read_timeline(tmp_path / "run")).axes
    (cross,) = whole.get_lines()
    assert (cross.get_color(), ys(cross).tolist()) == (UNUSED, [1])
    assert xs(cross).tolist() == [0.5]  # after the first step, which took half a second


def test_the_matrix_has_the_counts_and_colours_for_mistakes_only() -> None:
    axes = confusion_matrix(np.array([[3, 1], [0, 4]])).axes[0]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "3"),
        ((1, 0), "1"),
        ((1, 1), "4"),
    ]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0, 25], [0, 0]]
    assert axes.get_title() == "7 of 8 correct (87.50%)"


def test_the_matrix_and_the_mistakes_show_the_names_of_classes() -> None:
    axes = confusion_matrix(np.array([[3, 1], [0, 4]]), ("sun", "a house with a very long name")).axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["sun", cut("a house with a very long name", MOST_NAME)]
    found = msgspec.structs.replace(assessment([[5, 0], [0, 5], [0, 9]]), class_names=("sun", "house"))
    assert [axes.get_title() for axes in worst_mistakes(found).axes if axes.images] == ["sun, not house (100%)"]


def test_the_places_of_a_logarithmic_axis_are_plain_numbers() -> None:
    axes = new_figure(4.0, 4.0).subplots()
    logarithmic(axes.yaxis)
    axes.set_ylim(0.35, 0.9)
    axes.figure.canvas.draw()
    shown = [label.get_text() for label in axes.yaxis.get_minorticklabels() if label.get_text()]
    assert {"0.4", "0.6"} <= set(shown)
    assert not any("e" in text for text in shown)


@pytest.mark.parametrize(
    ("model", "shape", "pictures"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 70)), (1, 28, 28), (70, 28, 28)),
        (nn.Sequential(nn.Conv2d(3, 5, 4)), (3, 9, 9), (5, 4, 4)),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 4, 7)), (3, 6, 4), (7, 6, 4)),
    ],
)
def test_the_first_layer_is_shown_as_plots(model: nn.Module, shape: tuple[int, ...], pictures: tuple[int, ...]) -> None:
    _, found = first_images(model.state_dict(), shape)
    assert found.shape == pictures
    shown = [axes for axes in first_layer(model.state_dict(), shape).axes if axes.images]
    assert len(shown) == min(64, pictures[0])


def test_a_title_is_not_cut_off_however_few_are_below_it() -> None:
    deep: nn.Module = nn.Conv2d(1, 2, 3)
    for _ in range(12):
        deep = nn.Sequential(deep)
    for figure in (first_layer(deep.state_dict(), (1, 9, 9)), worst_mistakes(assessment([[0, 1]]))):
        figure.draw_without_rendering()
        (title,) = figure.texts
        assert title.get_window_extent().x0 >= 0
        assert title.get_window_extent().x1 <= figure.bbox.width


def test_of_many_units_the_largest_are_shown() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 100))
    weight = next(model.parameters()).data
    weight[...] = 0.01
    weight[90:] = 1.0
    last = [axes for axes in first_layer(model.state_dict(), (1, 2, 2)).axes if axes.images][-1]
    assert np.asarray(last.images[0].get_array()).tolist() == [[1, 1], [1, 1]]
    assert last.get_title() == "99"


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(5, 4)), nn.Sequential(nn.Conv2d(1, 2, 1)), nn.BatchNorm1d(3)]
)
def test_a_first_layer_that_is_no_plot_is_reported(model: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"is not an image of samples|has no weight with units"):
        first_layer(model.state_dict(), (1, 28, 28))


def assessment(logits: list[list[float]], shape: tuple[int, ...] = (1, 2, 2)) -> Assessment:
    labels = np.arange(len(logits), dtype=np.int64) % 2
    images = np.zeros((len(logits), *shape), np.uint8)
    return Assessment(Dataset(images, labels, 2), Tally(), np.array(logits, np.float32))


def test_answers_are_in_the_units_of_the_table() -> None:
    targets, outputs = np.array([[-1.0], [0.5], [2.0]], np.float32), np.array([[-0.5], [0.5], [1.5]], np.float32)
    dataset = Dataset(np.zeros((3, 2), np.float32), targets, 0)
    column = Column(name="price", mean=100.0, std=20.0)
    found = Assessment(dataset, Tally(), outputs, Objective(Job(loss="mse")), columns=(column,))
    (axes,) = regression_outputs(found).axes
    line, points = axes.get_lines()
    assert (xs(points).tolist(), ys(points).tolist()) == ([80.0, 110.0, 140.0], [90.0, 110.0, 130.0])
    assert xs(line).tolist() == [80.0, 140.0]
    assert (axes.get_xlabel(), axes.get_title()) == ("price", "root mean squared error 8.16, R² 0.8889")


def test_the_worst_mistakes_come_first() -> None:
    # Of classes 0, 1, 0, 1, 0: wrong are the second and, more so, the third.
    found = assessment([[5, 0], [1, 0], [0, 9], [0, 1], [1, 0]])
    assert found.surest_mistakes().tolist() == [2, 1]
    shown = [axes.get_title() for axes in worst_mistakes(found).axes if axes.images]
    assert shown == ["0, not 1 (100%)", "1, not 0 (73%)"]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (assessment([[5, 0], [0, 5]]), "all test samples are correct"),
        (assessment([[0, 5], [0, 5]], shape=(4,)), r"samples of shape \(4,\) are not images"),
    ],
)
def test_mistakes_that_cannot_be_shown_are_reported(found: Assessment, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        worst_mistakes(found)


def test_numbers_at_a_logarithmic_axis_are_no_formulas(tmp_path: Path) -> None:
    write_steps(tmp_path / "a", range(8), loss=8.0)
    figure = learning([read_curves(tmp_path / "a")])
    figure.canvas.draw()
    axis = figure.axes[0].yaxis
    shown = [label.get_text() for label in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True))]
    assert any(shown)
    assert not any("$" in text for text in shown)


def test_accuracy_fills_its_panel(tmp_path: Path) -> None:
    low, high = learning(courses(tmp_path, "a")).axes[1].get_ylim()
    # Between the training's 0.5 and the tests' 0.75.
    assert 0.4 < low < 0.5
    assert 0.75 < high < 0.8
