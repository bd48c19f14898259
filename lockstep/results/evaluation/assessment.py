"""Evaluate a trained model on a test set: its loss, its output for each sample, and the figures that follow from both.

The figures are lines for people, and a record for programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.array_files import open_npz
from lockstep.common.data.array_source import as_labels, as_samples, is_array_source, open_arrays
from lockstep.common.data.columns import Column
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import MANIFEST, read_manifest
from lockstep.common.data.records import labels_with, parts_of
from lockstep.common.data.sampler import evaluation_chunks
from lockstep.common.data.source import load
from lockstep.common.errors import DataError, ModelError
from lockstep.common.job.losses import LossKind
from lockstep.common.job.metrics import NOTHING_EXPLAINED, Score, explained, score_of
from lockstep.common.job.objective import Objective
from lockstep.common.job.tally import Tally
from lockstep.packing.cache import is_to_be_packed
from lockstep.packing.files import has_pictures
from lockstep.packing.pack import as_dtype
from lockstep.ps.run.description import DataDescription
from lockstep.results.evaluation.figures import (
    Integers,
    TargetFigures,
    class_figures,
    class_lines,
    confusion_of,
    in_units,
    label_figures,
    label_lines,
    matrix_lines,
    target_figures,
    target_lines,
)
from lockstep.results.evaluation.pictures import options_like
from lockstep.results.evaluation.predictor import arrays_called, records_like
from lockstep.runs.own_command import demand
from lockstep.runs.trained_model import Trained, dataset_of
from lockstep.worker.compute import Compute


class Assessment(msgspec.Struct, frozen=True):
    """The outputs of a model on a test set, and their tally."""

    dataset: Dataset
    #: Summed in the same order as in the evaluations of a run, so that the bits are the same.
    tally: Tally
    #: Outputs of the model: (n, classes), for sequences (n·t, classes), or for a regression (n, targets).
    outputs: Vector
    objective: Objective = msgspec.field(default_factory=Objective)
    #: The names of the classes, in order; empty if they have none.
    class_names: tuple[str, ...] = ()
    #: How the numbers that are predicted were scaled, each or all of them; empty if none was.
    columns: tuple[Column, ...] = ()
    #: Rows of a table that were left out, because they have nothing to compare with.
    left_out: int = 0

    @property
    def targets(self) -> Array:
        """The right outputs: a class per row, or as many numbers as a row has."""
        return self.objective.compared(self.objective.targets(self.dataset.labels))

    @property
    def has_classes(self) -> bool:
        """True if each row has one right class. With a loss of the user's own it has if the run has an accuracy."""
        if self.objective.kind is not LossKind.OWN:
            return self.objective.kind is LossKind.CLASSES
        is_one_each = self.outputs.ndim == 2 and self.targets.shape == (len(self.outputs), 1)
        return "accuracy" in self.objective.metrics.by_name and is_one_each

    @property
    def confusion(self) -> Integers:
        """The confusion matrix, (classes, classes). Raises ModelError unless the run has classes."""
        if not self.has_classes:
            raise ModelError(f"a run with loss = {self.objective.job.loss!r} has no classes of which one is right")
        predicted, targets = self.outputs.argmax(axis=1), self.targets.reshape(-1)
        kept = targets != self.objective.job.ignore_index
        return confusion_of(targets[kept], predicted[kept], self.outputs.shape[1])

    def surest_mistakes(self) -> NDArray[np.intp]:
        """Return the indices of a classifier's mistakes, those with the least probability of the true class first.

        Raises ModelError unless each sample has one right class.
        """
        if not self.has_classes or len(self.outputs) != len(self.dataset):
            raise ModelError(
                f"a run with loss = {self.objective.job.loss!r} has {self.dataset.targets} labels for each sample: "
                "expected one right class, which a prediction may miss"
            )
        labels = self.targets.reshape(-1)
        own = probabilities_of(self.outputs)[np.arange(len(labels)), np.where(labels < 0, 0, labels)]
        is_wrong = (self.outputs.argmax(axis=1) != labels) & (labels != self.objective.job.ignore_index)
        wrong = np.flatnonzero(is_wrong)
        return wrong[np.argsort(own[wrong], kind="stable")]

    @property
    def has_numbers(self) -> bool:
        """True if each row has numbers to predict. With a loss of the user's own it has if the run has R²."""
        if self.objective.kind is not LossKind.OWN:
            return self.objective.is_regression
        return "r2" in self.objective.metrics.by_name and self.outputs.shape == self.targets.shape

    @property
    def fit(self) -> list[TargetFigures]:
        """The errors of a regression by target, weighted as samples are. Raises ModelError for a classifier."""
        if not self.has_numbers:
            raise ModelError("a run with classes is not a regression")
        figures = target_figures(self.outputs, self.targets, self.dataset.weights)
        return in_units(figures, self.columns) if self.columns else figures


def probabilities_of(logits: Array) -> Array:
    """Return the softmax of each row, (n, classes), as float64."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def assess(trained: Trained, data: str | None = None, **reading: Any) -> Assessment:
    """Evaluate a trained model on its own test set or that of another dataset, normalised as in training.

    The other data becomes samples as that of the training did: a table is read in the same way, but for what `reading`
    has of `Reading.but`. The training data is not needed then.
    """
    described = trained.data
    trained_on = dataset_of(trained.folder, trained.job) if data is None else described.form()
    compute = Compute(trained.job, trained.model, trained_on, own=trained.own)
    compute.batches.preparation = described.preparation
    compute.weights[...] = trained.weights
    batches, objective, outputs, left_out = compute.batches, compute.batches.objective, list[Array](), 0
    if data is not None:
        other, left_out = _tested_with(described, trained_on, data, reading)
        batches.data = _with_test_of(trained_on, other, data, objective)
    test = batches.data.test
    compute.on_outputs = lambda chunk: outputs.append(objective.rows(chunk, test.targets).copy())
    tally = compute.evaluate(Node(0, evaluation_chunks(len(test))))
    are_names = objective.kind is LossKind.CLASSES or (described.is_table and described.classes)
    columns = () if are_names else tuple(described.targets)
    return Assessment(test, tally, np.concatenate(outputs), objective, trained_on.class_names, columns, left_out)


def _tested_with(
    described: DataDescription, trained_on: TrainTest, data: str, reading: Mapping[str, Any]
) -> tuple[TrainTest, int]:
    """Return other data to test with, which becomes samples as that of the training did; and how many are left out."""
    path = Path(data).expanduser()
    if (path / MANIFEST).is_file():
        other = read_manifest(path)
        names = ("columns", "targets", "class_names")
        if described.is_table and any(getattr(other, name) != getattr(described, name) for name in names):
            raise DataError(
                f"{data}: was packed with other columns, means or codes than the data of the run: expected the table "
                "itself, such as --data new.csv, which becomes samples as in training"
            )
        return load(data), 0
    if described.is_table and path.suffix != ".npz" and path.exists():
        demand("pyarrow", "data", "lockstep evaluate")
        # Here, as the extra may be missing without a table.
        from lockstep.results.evaluation.table_rows import TableRows

        samples, labels, left_out = TableRows(described, described.reading.but(**reading)).test_set(path)
        stored = trained_on.test.labels
        labels = labels.astype(stored.dtype).reshape(-1, *stored.shape[1:])
        return _alone(data, samples, labels, described.classes), left_out
    if described.kind == "pictures" and not is_array_source(data) and has_pictures(path):
        return _pictures(described, data, path), 0
    if path.suffix == ".npz" and (trained_on.train.images.dtype.names or not is_to_be_packed(data)):
        return _records(trained_on, data, path), 0
    if is_array_source(data) and is_to_be_packed(data):
        with open_arrays(data) as opened:
            samples, labels = opened.train.read_whole()
        return _alone(data, samples, labels, _classes_in(labels)), 0
    return load(data), 0


def _classes_in(labels: NDArray[Any]) -> int:
    """Return how many classes labels may be of, 0 for real numbers; whole ones may be numbers to predict too."""
    return 1 + int(labels.max(initial=0)) if labels.dtype == np.int64 else 0


def _records(trained_on: TrainTest, data: str, path: Path) -> TrainTest:
    """Return the inputs of a file as `lockstep predict` takes them, with their labels and weights."""
    with open_npz(path) as archive:
        for end in ("", "_test"):
            given, targets, weights = (arrays_called(archive, f"{kind}{end}") for kind in "xyw")
            if given:
                break
    try:
        if trained_on.train.images.dtype.names:
            samples = records_like(trained_on.train, given.get("", given))
        elif "" in given:
            samples = as_samples(f"'x{end}'", given[""])
        else:
            raise DataError(f"no array 'x{end}': expected one array of samples, as it was trained on")
        if not targets:
            raise DataError(f"no array 'y{end}': expected the numbers or classes to compare with, next to 'x{end}'")
        # In the order of the training set, which that of the file need not be.
        names = [name for name in trained_on.test.values.dtype.names or () if name in targets]
        labels = {name: as_labels(f"'y{end}'", targets[name]) for name in dict.fromkeys([*names, *targets])}
        joined = labels_with(labels, weights.get(""))
        return _alone(data, samples, joined, _classes_in(parts_of(joined)[0]))
    except DataError as error:
        raise DataError(f"{data}: {error}") from None


def _pictures(described: DataDescription, data: str, path: Path) -> TrainTest:
    """Return the pictures of a folder, in the form of those of the training."""
    demand("pillow", "data", "lockstep evaluate")
    from lockstep.packing.pictures import pictures_to_test

    options = options_like(described.inputs[0])
    batches = list(pictures_to_test(path, described.class_names, options).batches())
    if not batches:
        raise DataError(f"{data}: has no pictures: expected some to test with")
    samples, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return _alone(data, as_dtype(samples, options.dtype), labels, described.classes)


def _alone(data: str, samples: NDArray[Any], labels: NDArray[Any], classes: int) -> TrainTest:
    """Return samples to test with as a dataset."""
    part = Dataset(samples, labels, classes)
    return TrainTest(data, part, part)


def _with_test_of(trained_on: TrainTest, other: TrainTest, data: str, objective: Objective) -> TrainTest:
    """Return the data with another test set, whose labels are converted to what the objective compares."""
    shape, classes = trained_on.test.sample_shape, trained_on.test.classes
    if other.test.sample_shape != shape:
        raise DataError(f"{data}: samples of shape {other.test.sample_shape}: expected {shape}, as it was trained on")
    if trained_on.test.targets != other.test.targets:
        raise DataError(
            f"{data}: {other.test.targets} targets per sample: expected {trained_on.test.targets}, as it was trained on"
        )
    if trained_on.test.is_tokens != other.test.is_tokens:
        raise DataError(f"{data}: samples of dtype {str(other.test.images.dtype)!r}: expected tokens in both sets")
    if objective.is_regression:
        # One of the sets may have been stored with whole numbers, and the other not.
        parts = [_as_numbers(part, objective) for part in (trained_on.train, other.test)]
        return replace(trained_on, train=parts[0], test=parts[1], validation=None)
    objective.check_labels(other.test)
    labels = other.test.values
    if labels.dtype != trained_on.test.values.dtype:
        raise DataError(
            f"{data}: labels of dtype {labels.dtype}: expected {trained_on.test.values.dtype}, as it was trained on"
        )
    highest = int(labels.max()) if classes and labels.dtype.names is None else -1
    if highest >= classes and objective.kind is LossKind.CLASSES:
        raise DataError(f"{data}: has the label {highest}: expected those of {classes} classes, as it was trained on")
    return replace(trained_on, test=replace(other.test, classes=classes))


def _as_numbers(data: Dataset, objective: Objective) -> Dataset:
    # As they are stored: whatever compares them scales them.
    stored = Objective(replace(objective.job, target_scale=None))
    return replace(data, labels=stored.targets(data.labels), classes=0)


def record_of(tested: Assessment) -> dict[str, Any]:
    """Return the figures for programs."""
    others = dict(score(tested).others)
    named = {"metrics": others} if others else {}
    return {"test_loss": tested.tally.loss, **figures(tested), **named, "samples": len(tested.dataset)}


def score(tested: Assessment) -> Score:
    """Return the metrics of the run's job over the test set."""
    objective = tested.objective
    return score_of(objective.metrics, tested.tally, objective.guess(tested.dataset))


def figures(tested: Assessment) -> dict[str, Any]:
    """Return the figures that only a classifier has, or only a regression."""
    if tested.objective.is_regression:
        return {"test_r2": explained(r2_of(tested)), "targets": tested.fit}
    if tested.objective.kind is LossKind.OWN and not tested.has_classes:
        return {**scored(score(tested)), **({"targets": tested.fit} if tested.has_numbers else {})}
    if tested.objective.kind is LossKind.LABELS:
        return {"test_accuracy": score(tested).accuracy, "labels": label_figures(tested.outputs, tested.targets)}
    confusion = tested.confusion
    return {
        "test_accuracy": score(tested).accuracy,
        "class_names": list(tested.class_names) or [str(label) for label in range(len(confusion))],
        "classes": class_figures(confusion),
        "confusion": confusion.tolist(),
    }


def scored(found: Score) -> dict[str, float | None]:
    """Return accuracy and R² as far as the run has them: R² is None if all targets are equal."""
    accuracy = {} if found.accuracy is None else {"test_accuracy": found.accuracy}
    return {**accuracy, **({} if found.r2 is None else {"test_r2": explained(found.r2)})}


def lines(tested: Assessment, dataset: str, digest: str) -> list[str]:
    """Return the figures for a person."""
    tally, samples = tested.tally, f"{len(tested.dataset):,} samples of {dataset}"
    found = score(tested)
    others = [f"{'test ' + name:<14} {value:.4f}{_unit(name, tested)}" for name, value in found.others.items()]
    below = [f"test loss      {tally.loss:.4f}", *others, f"weights sha256 {digest}", ""]
    if tested.objective.is_regression:
        return [f"test R²        {Score(None, r2_of(tested)).text()} over {samples}", *below, *target_lines(tested.fit)]
    if tested.objective.kind is LossKind.OWN:
        named = [f"test {found.name:<9} {found.text()}"] if found.name else []
        own = [f"test loss      {tally.loss:.4f} over {samples}", *named, *below[1:-1]]
        if tested.has_numbers:
            return [*own, "", *target_lines(tested.fit)]
        return [*own, "", *_lines_by_class(tested)] if tested.has_classes else own
    if tested.objective.kind is LossKind.LABELS:
        counted = f"{tally.count:,} labels of {samples}"
        shown = label_lines(label_figures(tested.outputs, tested.targets))
        return [f"test accuracy  {found.text()} of {counted}", *below, *shown]
    judged = tally.count - tally.ignored
    counted = samples if judged == len(tested.dataset) else f"{judged:,} positions in {samples}"
    return [f"test accuracy  {found.text()} of {counted}", *below, *_lines_by_class(tested)]


def _unit(name: str, tested: Assessment) -> str:
    """Return in what an error is counted that is not in the units of the table, as those of each target are."""
    is_scaled = not tested.objective.job.target_scale and any(column.std != 1.0 for column in tested.columns)
    return " deviations of the target" if name in ("mae", "rmse") and is_scaled else ""


def _lines_by_class(tested: Assessment) -> list[str]:
    """Return the figures of each class, and which classes are confused."""
    confusion = tested.confusion
    matrix = matrix_lines(confusion, tested.class_names)
    return [*class_lines(class_figures(confusion), tested.class_names), *(["", *matrix] if matrix else [])]


def r2_of(tested: Assessment) -> float:
    """Return R² over all targets, as a run's own evaluation has it if its loss is the mean squared error."""
    found = score(tested).r2
    if found is not None:
        return found
    targets = tested.targets.astype(np.float64)
    total = float(np.square(targets - targets.mean(axis=0)).sum())
    return 1.0 - float(np.square(tested.outputs - targets).sum()) / total if total else NOTHING_EXPLAINED
