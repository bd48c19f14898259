"""Plot a trained model: its confusion matrix, first layer and worst mistakes, or the outputs of a regression.

All plots of runs are written from here; plots that cannot be made are reported."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.columns import unscaled
from lockstep.common.data.dataset import Dataset
from lockstep.common.errors import ModelError, UsageError
from lockstep.results.evaluation.assessment import Assessment, assess, probabilities_of
from lockstep.results.evaluation.figures import Integers, shown_names
from lockstep.results.plots.curves import RunCurves, read_timeline
from lockstep.results.plots.style import colour, new_figure, save, tidy
from lockstep.results.plots.timeline import timeline
from lockstep.results.plots.training import learning, throughput
from lockstep.runs.trained_model import Trained, open_trained

#: Most classes whose counts are written into a confusion matrix, and most filters, mistakes and targets to show.
MOST_COUNTED, MOST_FILTERS, MOST_MISTAKES, MOST_TARGETS = 20, 64, 30, 6

#: Inches per character of a title in 10 points.
CHARACTER = 0.07

#: Most characters of a class at the horizontal axis that stand upright.
MOST_UPRIGHT = 3

#: Most classes that are labelled at an axis; more would overlap.
MOST_TICKS = 32


def confusion_matrix(counts: Integers, names: Sequence[str] = ()) -> Figure:
    """Return the counts, coloured by their share of the class, and without the diagonal, which would hide the rest."""
    classes = len(counts)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    size = max(4.5, min(14.0, 0.55 * classes + 1.5))
    figure = new_figure(size + 0.8, size)
    axes = figure.subplots()
    off_diagonal = shares * (1 - np.eye(classes))
    most = max(0.01, float(off_diagonal.max()))
    image = axes.imshow(100 * off_diagonal, cmap="Reds", vmin=0, vmax=100 * most)
    right, total = int(np.trace(counts)), int(counts.sum())
    axes.set(title=f"{right:,} of {total:,} correct ({right / max(1, total):.2%})", xlabel="predicted", ylabel="class")
    ticks = range(0, classes, math.ceil(classes / MOST_TICKS))
    shown = shown_names(names, classes)[:: ticks.step]
    is_long = max(map(len, shown)) > MOST_UPRIGHT
    axes.set_xticks(ticks, shown, rotation=45 if is_long else 0, ha="right" if is_long else "center")
    axes.set_yticks(ticks, shown)
    if classes <= MOST_COUNTED:
        for row, column in np.ndindex(classes, classes):
            _count(axes, row, column, int(counts[row, column]), float(off_diagonal[row, column]) > 0.6 * most)
    figure.colorbar(image, ax=axes, label="% of the class, mistakes only", shrink=0.8)
    return figure


def _count(axes: Axes, row: int, column: int, count: int, is_dark: bool) -> None:
    if count:
        weight = "bold" if row == column else "normal"
        colour = "white" if is_dark else "black"
        axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, fontweight=weight, color=colour)


def first_layer(weights: Mapping[str, Array], sample_shape: tuple[int, ...]) -> Figure:
    """Return the weights of the first layer as images. Raises ModelError if they are not images."""
    name, images = first_images(weights, sample_shape)
    # Of many units, those with the largest weights: others still show their initial values.
    largest = np.sort(np.argsort(-np.square(images).sum(axis=(1, 2)), kind="stable")[:MOST_FILTERS])
    shown = images[largest]
    most = float(np.abs(shown).max()) or 1.0
    which = f"the {len(shown)} largest of {len(images)}" if len(shown) < len(images) else f"all {len(images)}"
    title = f"{name}, {which} units: red is positive, blue negative (at most {most:.2g})"
    figure, grid = _grid(len(shown), 1.15, title)
    for axes, image, unit in zip(grid, shown, largest.tolist(), strict=False):
        axes.imshow(image, cmap="RdBu_r", vmin=-most, vmax=most)
        axes.set_title(f"{unit}", fontsize=7, pad=2)
    return figure


def first_images(weights: Mapping[str, Array], sample_shape: tuple[int, ...]) -> tuple[str, Array]:
    """Return the name and the images (units, height, width) of the first weight with two or more axes."""
    name, weight = next(((name, array) for name, array in weights.items() if array.ndim >= 2), ("", None))
    if weight is None:
        raise ModelError("the model has no weight with units")
    if weight.ndim == 4 and weight.shape[2] * weight.shape[3] > 1:
        return name, weight.mean(axis=1)
    if weight.ndim == 2 and len(sample_shape) == 3 and weight.shape[1] == math.prod(sample_shape):
        return name, weight.reshape(len(weight), *sample_shape).mean(axis=1)
    raise ModelError(f"{name!r} of shape {weight.shape} is not an image of samples of shape {sample_shape}")


def worst_mistakes(assessment: Assessment) -> Figure:
    """Return the mistakes of which the model is most certain. Raises ModelError without mistakes or images."""
    dataset = assessment.dataset
    if dataset.images.ndim != 4:
        raise ModelError(f"samples of shape {dataset.sample_shape} are not images")
    wrong = assessment.surest_mistakes()
    if not wrong.size:
        raise ModelError("all test samples are correct")
    probabilities, labels = probabilities_of(assessment.outputs), assessment.targets.reshape(-1)
    shown = wrong[:MOST_MISTAKES]
    which = f"the {len(shown)} worst of {len(wrong):,}" if len(shown) < len(wrong) else f"all {len(wrong)}"
    names = shown_names(assessment.class_names, assessment.outputs.shape[1])
    figure, grid = _grid(
        len(shown),
        1.35 if not assessment.class_names else 2.2,
        f"{which} mistakes: class, not prediction (its probability)",
    )
    for axes, index in zip(grid, shown.tolist(), strict=False):
        axes.imshow(_image(dataset, index), cmap="gray")
        predicted = int(assessment.outputs[index].argmax())
        share = f"{probabilities[index, predicted]:.0%}"
        axes.set_title(f"{names[int(labels[index])]}, not {names[predicted]} ({share})", fontsize=8)
    return figure


def regression_outputs(assessment: Assessment) -> Figure:
    """Return the outputs of a regression over the targets, one panel per target; correct ones lie on the line.

    Both are in the units of the table.
    """
    figures, columns = assessment.fit[:MOST_TARGETS], assessment.columns
    outputs, targets = (
        unscaled(scaled, columns) if columns else scaled for scaled in (assessment.outputs, assessment.targets)
    )
    figure = new_figure(4.8 * len(figures), 4.6)
    for axes, fit in zip(figure.subplots(1, len(figures), squeeze=False).flat, figures, strict=True):
        x, y = targets[:, fit.target], outputs[:, fit.target]
        ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
        axes.plot(ends, ends, color="#555555", linewidth=0.8)
        axes.plot(x, y, ".", color=colour(0), markersize=3, alpha=max(0.15, min(1.0, 500 / len(x))))
        r2 = "" if fit.r2 is None else f", R² {fit.r2:.4f}"
        tidy(axes, title=f"root mean squared error {fit.mse**0.5:.3g}{r2}", x=fit.name or "target", y="output")
    return figure


def _image(dataset: Dataset, index: int) -> Array:
    """Return a sample for `imshow`: (height, width), or (height, width, 3) from 0 to 1 if it has three channels."""
    image = dataset.images[index].astype(np.float64)
    if len(image) != 3:
        return np.asarray(image.mean(axis=0))
    low, high = float(image.min()), float(image.max())
    return np.asarray(((image - low) / ((high - low) or 1.0)).transpose(1, 2, 0))


def _grid(count: int, inches: float, title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of empty axes, about twice as wide as high, and at least as wide as its title."""
    most = min(count, max(4, math.ceil(2 * math.sqrt(count))))
    # About twice as wide as high, with as few empty places as possible.
    columns = min(range((most + 1) // 2, most + 1), key=lambda width: (-count % width, abs(width**2 - 2 * count)))
    rows = math.ceil(count / columns)
    figure = new_figure(max(5.0, columns * inches, CHARACTER * len(title)), rows * inches + 0.6)
    figure.suptitle(title, fontsize=10)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    return figure, grid


class Subject(msgspec.Struct, frozen=True, dict=True):
    """One run, whose weights are read and evaluated when they are needed."""

    folder: Path
    curves: RunCurves
    #: The place of its training data, None if that is the same as in training.
    training_data: str | None = None

    @cached_property
    def trained(self) -> Trained:
        return open_trained(self.folder).with_data(self.training_data)

    @cached_property
    def assessment(self) -> Assessment:
        return assess(self.trained)

    def plots(self) -> dict[str, Callable[[], Figure]]:
        """Return the plots of one run by the names of their files."""
        makers = {
            "timeline": lambda: timeline(self.curves, read_timeline(self.folder)),
            "confusion": lambda: confusion_matrix(self.assessment.confusion, self.assessment.class_names),
            "first_layer": lambda: first_layer(self.trained.arrays(), self.trained.data.form().train.sample_shape),
            "mistakes": lambda: worst_mistakes(self.assessment),
        }
        if self.curves.is_regression:
            return {"timeline": makers["timeline"], "answers": lambda: regression_outputs(self.assessment)}
        return makers


def plot_runs(subjects: Sequence[Subject], folder: Path) -> Iterator[str]:
    """Write all plots into a folder; yield a line about each, written or left out."""
    runs = [subject.curves for subject in subjects]
    yield from _written(folder / "learning.png", lambda: learning(runs))
    yield from _written(folder / "throughput.png", lambda: throughput(runs))
    for subject in subjects:
        prefix = f"{subject.curves.name}-" if len(subjects) > 1 else ""
        for name, make in subject.plots().items():
            yield from _written(folder / f"{prefix}{name}.png", make)


def _written(path: Path, make: Callable[[], Figure]) -> Iterator[str]:
    try:
        figure = make()
    except UsageError as error:
        yield f"left out {path.name}: {error}"
        return
    save(figure, path)
    yield f"wrote {path}"
