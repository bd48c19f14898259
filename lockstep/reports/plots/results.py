"""Draws what a model came to: what it takes for what, its first layer, its worst mistakes, a regression's answers."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.autograd.primitives.primitive import Array
from common.data.dataset import Dataset
from common.errors import ModelError
from common.nn.module import Module
from lockstep.evaluation.assessment import Assessment
from lockstep.evaluation.confusion import Confusion
from lockstep.reports.plots.style import colour, new_figure, tidy

#: Classes of a confusion matrix whose counts are written into it; filters, mistakes, and targets, that are shown.
MOST_COUNTED, MOST_FILTERS, MOST_MISTAKES, MOST_TARGETS = 20, 64, 30, 6

#: Inches that a character of a title takes, which stands at 10 points.
CHARACTER = 0.07

#: Classes that are named at an axis: more would run into one another.
MOST_TICKS = 32


def confusion_matrix(confusion: Confusion) -> Figure:
    """Return the counts: the colour tells the share of its class, without which the diagonal would hide the rest."""
    counts = confusion.counts
    classes = len(counts)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    size = max(4.5, min(14.0, 0.55 * classes + 1.5))
    figure = new_figure(size + 0.8, size)
    axes = figure.subplots()
    off_diagonal = shares * (1 - np.eye(classes))
    most = max(0.01, float(off_diagonal.max()))
    image = axes.imshow(100 * off_diagonal, cmap="Reds", vmin=0, vmax=100 * most)
    right, total = int(np.trace(counts)), int(counts.sum())
    axes.set(title=f"{right:,} of {total:,} right ({right / max(1, total):.2%})", xlabel="taken for", ylabel="class")
    ticks = range(0, classes, math.ceil(classes / MOST_TICKS))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
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


def first_layer(model: Module, sample_shape: tuple[int, ...]) -> Figure:
    """Return the first layer's weights as pictures; `ModelError` where they are none."""
    name, pictures = first_pictures(model, sample_shape)
    # Of many units, those that have become something: others still show what was drawn at the start.
    largest = np.sort(np.argsort(-np.square(pictures).sum(axis=(1, 2)), kind="stable")[:MOST_FILTERS])
    shown = pictures[largest]
    most = float(np.abs(shown).max()) or 1.0
    which = f"the {len(shown)} largest of {len(pictures)}" if len(shown) < len(pictures) else f"all {len(pictures)}"
    title = f"{name}, {which} units: red counts for it, blue against it (at most {most:.2g})"
    figure, grid = _grid(len(shown), 1.15, title)
    for axes, picture, unit in zip(grid, shown, largest.tolist(), strict=False):
        axes.imshow(picture, cmap="RdBu_r", vmin=-most, vmax=most)
        axes.set_title(f"{unit}", fontsize=7, pad=2)
    return figure


def first_pictures(model: Module, sample_shape: tuple[int, ...]) -> tuple[str, Array]:
    """Return the name and the pictures (units, height, width) of the first weight with two axes or more."""
    weights = ((name, parameter.data) for name, parameter in model.named_parameters() if parameter.ndim >= 2)
    name, weight = next(weights, ("", None))
    if weight is None:
        raise ModelError("the model has no weight with units")
    if weight.ndim == 4 and weight.shape[2] * weight.shape[3] > 1:
        return name, weight.mean(axis=1)
    if weight.ndim == 2 and len(sample_shape) == 3 and weight.shape[1] == math.prod(sample_shape):
        return name, weight.reshape(len(weight), *sample_shape).mean(axis=1)
    raise ModelError(f"{name!r} of shape {weight.shape} is no picture of samples of shape {sample_shape}")


def worst_mistakes(assessment: Assessment) -> Figure:
    """Return the samples that the model is surest of wrongly; `ModelError` where there are none, or no pictures."""
    dataset = assessment.dataset
    if dataset.images.ndim != 4:
        raise ModelError(f"samples of shape {dataset.sample_shape} are no pictures")
    wrong = surest_mistakes(assessment)
    if not wrong.size:
        raise ModelError("all test samples are right")
    probabilities = _softmax(assessment.outputs)
    shown = wrong[:MOST_MISTAKES]
    which = f"the {len(shown)} worst of {len(wrong):,}" if len(shown) < len(wrong) else f"all {len(wrong)}"
    figure, grid = _grid(len(shown), 1.35, f"{which} mistakes: what it is, not what it was taken for")
    for axes, index in zip(grid, shown.tolist(), strict=False):
        axes.imshow(_picture(dataset, index), cmap="gray")
        taken = int(assessment.outputs[index].argmax())
        axes.set_title(f"{dataset.labels[index]}, not {taken} ({probabilities[index, taken]:.0%})", fontsize=8)
    return figure


def answers(assessment: Assessment) -> Figure:
    """Return a regression's answers over the targets, a panel for each target: on the line, they would be right."""
    figures, outputs, targets = assessment.fit[:MOST_TARGETS], assessment.outputs, assessment.targets
    figure = new_figure(4.8 * len(figures), 4.6)
    for axes, told in zip(figure.subplots(1, len(figures), squeeze=False).flat, figures, strict=True):
        x, y = targets[:, told.target], outputs[:, told.target]
        ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
        axes.plot(ends, ends, color="#555555", linewidth=0.8)
        axes.plot(x, y, ".", color=colour(0), markersize=3, alpha=max(0.15, min(1.0, 500 / len(x))))
        r2 = "" if told.r2 is None else f", R² {told.r2:.4f}"
        tidy(axes, title=f"root of the mean squared error {told.mse**0.5:.3g}{r2}", x="target", y="answer")
    return figure


def surest_mistakes(assessment: Assessment) -> np.typing.NDArray[np.intp]:
    """Return the places of samples that are taken for another class, those with the least chance of theirs first."""
    labels, logits = assessment.targets, assessment.outputs
    own = _softmax(logits)[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    return wrong[np.argsort(own[wrong], kind="stable")]


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _picture(dataset: Dataset, index: int) -> Array:
    """Return a sample for `imshow`: (height, width), or with three colours (height, width, 3) from 0 to 1."""
    image = dataset.images[index].astype(np.float64)
    if len(image) != 3:
        return np.asarray(image.mean(axis=0))
    low, high = float(image.min()), float(image.max())
    return np.asarray(((image - low) / ((high - low) or 1.0)).transpose(1, 2, 0))


def _grid(count: int, inches: float, title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many small empty axes, about twice as wide as high, and at least as wide as its title."""
    most = min(count, max(4, math.ceil(2 * math.sqrt(count))))
    # About twice as wide as high, with as few places left over as can be.
    columns = min(range((most + 1) // 2, most + 1), key=lambda width: (-count % width, abs(width**2 - 2 * count)))
    rows = math.ceil(count / columns)
    figure = new_figure(max(5.0, columns * inches, CHARACTER * len(title)), rows * inches + 0.6)
    figure.suptitle(title, fontsize=10)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    return figure, grid
