"""The loss of a job: a sum of losses of a model's outputs, and the sums of its metrics. Pure; holds no state.

A loss compares a sample's outputs with its *targets*: one class, a class for each place of a sequence or of an image,
several labels that hold or do not, or real numbers. Targets are counted, so that a mean is one over targets:
over the characters of a text, for example. It is written once for all libraries that compute gradients, since their
functions have the names of `torch.nn.functional`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
from msgspec.structs import replace

from lockstep.common.autograd import functional
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.dataset import Dataset
from lockstep.common.data.mapped import MappedSamples
from lockstep.common.data.records import LABEL, WEIGHT, parts_of
from lockstep.common.errors import DataError, ModelError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import CONV, DENSE, Job, names_code
from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.job.metrics import MOST_CLASSES, ComparedRows, Metric, Metrics
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.job.tally import Tally
from lockstep.common.numerics.sums import halved_sum, halved_sums


class LossLibrary(NamedTuple):
    """A library that computes losses and their gradients."""

    #: Functions with the names and arguments of `torch.nn.functional`.
    functional: Any
    #: Returns an array as these functions take targets and weights.
    constant: Callable[[Array], Any]


AUTOGRAD = LossLibrary(functional, lambda array: array)

#: The loss of a batch: a number with a gradient, and the sum of the targets' weights, None if each that is not ignored
#: weighs 1.
LossSum = tuple[Any, float | None]


@dataclass(frozen=True)
class Objective:
    """The function that a job minimises."""

    job: Job = field(default_factory=Job)
    #: The user's own functions that the job names, if anything is to be computed.
    own: OwnCode = NO_CODE

    @cached_property
    def kind(self) -> LossKind:
        return kind_of(self.job.loss)

    @property
    def is_regression(self) -> bool:
        """True if targets are real numbers, and no class is right or wrong."""
        return self.kind is LossKind.NUMBERS

    @cached_property
    def metrics(self) -> Metrics:
        """The counted figures besides the loss, in this order."""
        return Metrics.of(self.job.loss, self.job.metrics or ())

    @cached_property
    def _weights(self) -> Array | None:
        """The weight of each class; of several labels, that of each where it holds. None if all weigh 1."""
        return np.array(self.job.class_weights, np.float32) if self.job.class_weights else None

    @cached_property
    def _scale(self) -> tuple[Array, Array] | None:
        """Means and deviations of numbers to predict, (1,) or (outputs,); None if these stay as they are."""
        scale = self.job.target_scale
        return (np.array(scale[::2]), np.array(scale[1::2])) if scale else None

    @property
    def is_stackable(self) -> bool:
        """True if it makes the same calls with each batch, so that several may be computed at once."""
        return self.kind is not LossKind.OWN

    # Targets

    def targets(self, labels: Array) -> Array:
        """Return samples' labels as the loss compares them.

        These are classes, int64 (targets,) or of images (n, h, w); or float32 (n, outputs). Records with the weights
        of samples stay records, with as many rows: a weight for each of them.
        """
        if self.kind is LossKind.OWN:
            return labels
        values, weights = parts_of(labels)
        plain = self._plain(values)
        if weights is None:
            return plain
        row = (WEIGHT, np.float32)
        found = np.empty(len(plain), [(LABEL, plain.dtype, plain.shape[1:]), row])
        found[LABEL], found[WEIGHT] = plain, np.repeat(weights, len(plain) // max(1, len(labels)))
        return found

    def _plain(self, labels: Array) -> Array:
        if self.kind is LossKind.CLASSES:
            return labels if labels.ndim > 2 else labels.reshape(-1)
        rows = labels if labels.ndim > 2 else labels.reshape(len(labels), -1)
        if self._scale is None:
            return rows.astype(np.float32, copy=False)
        means, deviations = self._scale
        return ((rows - means) / deviations).astype(np.float32)

    def in_units(self, numbers: Array) -> Array:
        """Return numbers to predict, scaled, in the units of the labels."""
        if self._scale is None:
            return numbers
        means, deviations = self._scale
        return (numbers * deviations + means).astype(np.float32)

    def rows(self, outputs: Array, per_sample: int = 1) -> Array:
        """Return outputs with one row for each class that is a target, or for each sample: (rows, outputs).

        Of (n, t, classes) or (n, classes, t) these are n·t rows, of (n, classes, h, w) they are n·h·w. `per_sample` is
        the number of targets of a sample.
        """
        if self.kind is not LossKind.CLASSES or outputs.ndim <= 2:
            return outputs if outputs.ndim <= 2 or self.kind is LossKind.OWN else outputs.reshape(len(outputs), -1)
        if outputs.ndim == 3 and outputs.shape[1] == per_sample:
            return outputs.reshape(-1, outputs.shape[-1])
        return np.moveaxis(outputs, 1, -1).reshape(-1, outputs.shape[1])

    def compared(self, targets: Array) -> Array:
        """Return targets without their weights, one for each row of the outputs, as `rows` has them."""
        values = parts_of(targets)[0]
        return values.reshape(-1) if self.kind is LossKind.CLASSES else values.reshape(len(values), -1)

    # The loss

    def training_loss(self, outputs: Any, targets: Array, library: LossLibrary = AUTOGRAD) -> LossSum:
        """Return the sum of the losses of outputs, as a tensor with a gradient, and what it is divided by."""
        return self._loss(outputs, targets, self.job.label_smoothing, library)

    def test_loss(self, outputs: Any, targets: Array, library: LossLibrary = AUTOGRAD) -> LossSum:
        """Return the same without label smoothing, which is for training only."""
        return self._loss(outputs, targets, 0.0, library)

    def _loss(self, outputs: Any, targets: Array, smoothing: float, library: LossLibrary) -> LossSum:
        if self.kind is LossKind.OWN:
            return self._own_loss(outputs, targets, library)
        values, weights = parts_of(targets)
        reduction = "sum" if weights is None else "none"
        if self.kind is LossKind.CLASSES:
            losses = self._class_losses(outputs, values, smoothing, library, reduction)
        else:
            losses = self._number_losses(outputs, values, library, reduction)
        if weights is not None:
            shape = (-1, *[1] * (values.ndim - 1))
            losses = (losses * library.constant(weights.reshape(shape))).sum()
        return losses, self.weight(targets)

    def _class_losses(self, outputs: Any, values: Array, smoothing: float, library: LossLibrary, reduction: str) -> Any:
        options: dict[str, Any] = {"reduction": reduction}
        if self.job.loss == "cross-entropy":
            options["label_smoothing"] = smoothing
        if self._weights is not None:
            options["weight"] = library.constant(self._weights)
        if self.job.ignore_index is not None:
            options["ignore_index"] = self.job.ignore_index
        if outputs.ndim == 3 and values.ndim == 1:
            if outputs.shape[1] * outputs.shape[0] != values.size:
                outputs = outputs.transpose(1, 2)
            outputs = outputs.reshape(-1, outputs.shape[-1])
        of = library.functional
        loss = of.cross_entropy if self.job.loss == "cross-entropy" else of.nll_loss
        return loss(outputs, library.constant(values), **options)

    def _number_losses(self, outputs: Any, values: Array, library: LossLibrary, reduction: str) -> Any:
        of, expected = library.functional, library.constant(values)
        if self.job.loss == "bce":
            if self._weights is not None:
                weights = library.constant(self._weights)
                return of.binary_cross_entropy_with_logits(outputs, expected, reduction=reduction, pos_weight=weights)
            return of.binary_cross_entropy_with_logits(outputs, expected, reduction=reduction)
        loss = {"mse": of.mse_loss, "l1": of.l1_loss, "smooth-l1": of.smooth_l1_loss}[self.job.loss]
        return loss(outputs, expected, reduction=reduction)

    def _own_loss(self, outputs: Any, targets: Array, library: LossLibrary) -> LossSum:
        assert self.own.loss is not None  # every process that computes has it
        given = _own_targets(targets, library)
        try:
            total, count = self.own.loss(outputs, given)
        except Exception as error:
            raise ModelError(
                f"{self.job.loss} raised {type(error).__name__}: {' '.join(str(error).split())}: expected a function "
                "of outputs and targets that returns two numbers, the sum of the losses and what it is divided by"
            ) from error
        weight = float(count)
        if not 0.0 <= weight < np.inf:
            raise ModelError(f"{self.job.loss} returned the count {weight!r}: expected a finite number of at least 0")
        if not hasattr(total, "shape"):
            raise ModelError(
                f"{self.job.loss} returned {total!r} as the sum of the losses: expected a tensor with one number, "
                "which has a gradient; remove .item() or float()"
            )
        if total.shape not in ((), (1,)):
            raise ModelError(
                f"{self.job.loss} returned losses of shape {tuple(total.shape)!r}: expected their sum, a "
                "tensor with one number; call .sum()"
            )
        return total, weight

    # The counted figures

    def weight(self, targets: Array) -> float | None:
        """Return the sum of the weights of targets, None if each that is not ignored weighs 1.

        Added in float64: those of an own loss are not known here.
        """
        values, weights = parts_of(targets)
        class_weights = self._weights if self.kind is LossKind.CLASSES else None
        if weights is None and class_weights is None:
            return None
        each = np.ones(values.shape) if class_weights is None else self._of_class(values, class_weights)
        if weights is not None:
            each = each * weights.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float64)
            if self.job.ignore_index is not None and class_weights is None:
                each = each * (values != self.job.ignore_index)
        return halved_sum(each)

    def _of_class(self, values: Array, weights: Array) -> Array:
        counts = values if self.job.ignore_index is None else np.where(values == self.job.ignore_index, 0, values)
        each = weights.astype(np.float64)[counts]
        return each if self.job.ignore_index is None else each * (values != self.job.ignore_index)

    def ignored(self, targets: Array) -> int:
        """Return how many targets are none."""
        if self.job.ignore_index is None or self.kind is not LossKind.CLASSES:
            return 0
        return int(np.count_nonzero(parts_of(targets)[0] == self.job.ignore_index))

    def tally(self, loss: SupportsFloat, outputs: Array, targets: Array, weight: float | None = None) -> Tally:
        """Return the tally of samples with that sum of losses, and of weights."""
        sums = self.metric_sums(outputs, targets)
        return Tally(float(loss), self.count(targets), self.ignored(targets), weight, sums)

    def count(self, targets: Array) -> int:
        """Return the number of targets, ignored ones too: it follows from the number of samples."""
        is_own = self.kind is LossKind.OWN and targets.dtype.names is not None
        return len(targets) if is_own else parts_of(targets)[0].size

    def correct(self, outputs: Array, targets: Array) -> int:
        """Return how many targets are predicted correctly; 0 if there is nothing right or wrong."""
        accuracy = self.metrics.by_name.get("accuracy")
        return 0 if accuracy is None else int(self._sums("accuracy", accuracy, outputs, targets)[0])

    def metric_sums(self, outputs: Array, targets: Array) -> tuple[float, ...]:
        """Return the sums of all metrics, one after the other; `ModelError` if one cannot be computed of these."""
        found: list[float] = []
        for name, metric in self.metrics.by_name.items():
            found += self._sums(name, metric, outputs, targets)
        return tuple(found)

    def _sums(self, name: str, metric: Metric, outputs: Array, targets: Array) -> Sequence[float]:
        if not metric.width:
            return ()
        if metric.sums is None:
            return self._own_sums(name, outputs, targets)
        is_own = self.kind is LossKind.OWN
        rows = self._rows_for_own(name, metric, outputs, targets) if is_own else self._compared_rows(outputs, targets)
        if metric.is_by_class and rows.outputs.shape[1] > MOST_CLASSES:
            raise ModelError(
                f"metrics has {name!r} with {rows.outputs.shape[1]} classes: expected at most {MOST_CLASSES}, since it "
                "has three sums of each; use accuracy or top5"
            )
        return metric.sums(rows)

    def _rows_for_own(self, name: str, metric: Metric, outputs: Array, targets: Array) -> ComparedRows:
        """Return the rows that a metric compares with a user's loss: as one with a name would."""
        values, _ = parts_of(targets)
        if LossKind.NUMBERS in metric.kinds:
            loss = "mse"
        else:
            loss = "bce" if values.shape == outputs.shape else "cross-entropy"
        seen = Objective(replace(self.job, loss=loss))
        problem = "several arrays" if values.dtype.names else ""
        if not problem:
            rows = seen._compared_rows(outputs, seen.targets(targets))
            problem = _misfit(rows)
        if problem:
            raise ModelError(
                f"metrics has {name!r} with loss = {self.job.loss!r}, and the targets are {problem}: expected what a "
                f"loss by name takes, as {loss!r}; or give a function of outputs and targets that returns a sum and a "
                "count"
            )
        return rows

    def _compared_rows(self, outputs: Array, targets: Array) -> ComparedRows:
        values, weights = self.compared(targets), parts_of(targets)[1]
        if self.kind is not LossKind.CLASSES:
            deviations = None if self._scale is None else self._scale[1]
            return ComparedRows(self.rows(outputs), values, self.kind, weights, deviations)
        rows = self.rows(outputs, values.size // max(1, len(outputs)))
        if self.job.ignore_index is None:
            return ComparedRows(rows, values, self.kind)
        is_counted = values != self.job.ignore_index
        return ComparedRows(rows[is_counted], values[is_counted], self.kind)

    def _own_sums(self, name: str, outputs: Array, targets: Array) -> tuple[float, float]:
        given = _own_targets(targets, AUTOGRAD)
        if self.kind is not LossKind.OWN:
            rows = self._compared_rows(outputs, targets)
            outputs, given = self.in_units(rows.outputs), self.in_units(rows.targets)
        try:
            total, count = map(float, self.own.metrics[name](outputs, given))
        except Exception as error:
            raise ModelError(
                f"the metric {name} raised {type(error).__name__}: {' '.join(str(error).split())}: expected a function "
                "of outputs and targets, both NumPy arrays, that returns two numbers, a sum and what it is divided by"
            ) from error
        if not (np.isfinite(total) and 0.0 <= count < np.inf):
            raise ModelError(
                f"the metric {name} returned {total!r} and {count!r}: expected two finite numbers, a sum and what "
                "it is divided by, which is at least 0"
            )
        return total, count

    # What goes together

    def check_labels(self, data: Dataset, class_names: Sequence[str] = ()) -> None:
        """Raise `DataError` if the labels are of another kind than the loss compares."""
        kind = self.kind
        if kind is LossKind.OWN:
            return
        if kind is LossKind.NUMBERS and class_names:
            # Integers as labels may be numbers; the places of names in their order are not.
            are_texts = any(not name.lstrip("-").replace(".", "", 1).isdigit() for name in class_names)
            packed = "" if are_texts else ", or a table packed with --task numbers"
            raise DataError(
                f"the labels are {len(class_names)} classes with names ({one_line(class_names[0], 40)!r}, …), and loss "
                f"= {self.job.loss!r} needs numbers: expected loss = 'cross-entropy'{packed}"
            )
        if kind is LossKind.CLASSES and not data.classes:
            raise DataError(
                f"the labels are real numbers, and loss = {self.job.loss!r} needs classes: expected integers "
                "(.astype(numpy.int64); a column of a table needs --task classes), or loss = 'mse' for a regression"
            )
        # Those of a folder were looked at when it was packed.
        if not isinstance(data.images, MappedSamples):
            self._check_values(data.values)

    def _check_values(self, values: Array) -> None:
        if self.kind is LossKind.LABELS:
            odd = (values != 0) & (values != 1)
            if odd.any():
                raise DataError(
                    f"the label {values[odd].flat[0].item()!r} at index {int(np.argwhere(odd)[0, 0])}: expected 0 or 1 "
                    "for each of several labels, as loss = 'bce' needs"
                )
        elif values.dtype.kind == "i":
            odd = (values < 0) if self.job.ignore_index is None else (values < 0) & (values != self.job.ignore_index)
            if odd.any():
                found = int(values[odd].flat[0])
                raise DataError(
                    f"label {found!r} at index {int(np.argwhere(odd)[0, 0])}: expected an integer from 0 on, or "
                    f"ignore_index = {found}, if such targets are not to count"
                )

    def classes_of(self, data: Dataset) -> int:
        """Return the number of classes, of which an ignored label is none."""
        if self.job.ignore_index is None or self.job.ignore_index != data.classes - 1:
            return data.classes
        values = data.values
        return 1 + int(np.where(values == self.job.ignore_index, -1, values).max(initial=-1))

    def check_fit(self, data: Dataset, output_shape: tuple[int, ...]) -> None:
        """Raise `ModelError` if the model's output for two samples of `data` is not what the loss compares."""
        if self.kind is LossKind.OWN:
            return
        labels = data.values.shape[1:]
        if self.kind is LossKind.CLASSES:
            self._check_classes(data, output_shape, labels)
            return
        expected = (2, *labels) if len(labels) > 1 else (2, data.targets)
        if output_shape != expected:
            what = "targets" if self.is_regression else "labels"
            raise ModelError(
                f"the model turns 2 samples of shape {data.sample_shape} into an array of shape {output_shape}: "
                f"expected {expected}, one number for each of {data.targets} {what}, as loss = {self.job.loss!r} needs"
                f"{_other_outputs(data, self.job)}"
            )
        self._check_weights(data.targets)
        scale = self.job.target_scale or ()
        if len(scale) > 2 and (len(labels) > 1 or len(scale) != 2 * data.targets):
            raise ModelError(
                f"target_scale has {len(scale)} numbers: expected a mean and a deviation, or both for each "
                f"of {data.targets} targets"
            )

    def _check_classes(self, data: Dataset, output_shape: tuple[int, ...], labels: tuple[int, ...]) -> None:
        # If the ignored label is the largest, the model may have an output for it, or none.
        numbers = {self.classes_of(data), data.classes}
        fitting = [(2, *labels, classes) for classes in numbers if len(labels) < 2]
        fitting += [(2, classes, *labels) for classes in numbers]
        classes = min(numbers)
        if output_shape not in fitting:
            is_one_hot = len(labels) == 1 and not data.is_tokens and len(output_shape) == 2
            advice = "; for one-hot rows, give .argmax(axis=1) of the labels" if is_one_hot else ""
            if is_one_hot and labels == (1,):
                advice = "; or, as the labels are a column, (n, 1), give labels[:, 0]"
            if not is_one_hot and data.values.size and data.values.min() > 0:
                advice = f"; or, as no label is below {data.values.min()}, count classes from 0"
            raise ModelError(
                f"the model turns 2 samples of shape {data.sample_shape} into an array of shape {output_shape}: "
                f"expected {fitting[0]}, one number for each of {classes} classes"
                f"{_other_outputs(data, self.job)}{advice}"
            )
        self._check_weights(output_shape[-1 if output_shape[1:-1] == labels else 1])

    def _check_weights(self, outputs: int) -> None:
        if self._weights is not None and len(self._weights) != outputs:
            raise ModelError(
                f"class_weights has {len(self._weights)} numbers: expected {outputs}, one for each output; "
                "classes that are texts are in alphabetical order"
            )

    def guess(self, data: Dataset) -> float | None:
        """Return the squared error of always predicting the targets' mean, by which R² is measured; None without R²."""
        if not self.metrics.needs_guess:
            return None
        seen = self if self.kind is LossKind.NUMBERS else Objective(replace(self.job, loss="mse"))
        targets = seen.compared(seen.targets(data.labels)).astype(np.float64)
        if data.weights is None:
            mean = halved_sums(targets.T) / len(targets)
            return halved_sum(np.square(targets - mean)) / int(targets.size)
        weights = data.weights.astype(np.float64)[:, np.newaxis] / halved_sum(data.weights)
        mean = halved_sums((weights * targets).T)
        return halved_sum(weights * np.square(targets - mean)) / int(targets.shape[1])


def _other_outputs(data: Dataset, job: Job) -> str:
    """Return how a model gets other outputs: those of shipped models are fixed, or follow from the data already."""
    if job.hidden is not None:
        return ""
    if not isinstance(job.model, str) or names_code(job.model):
        return "; change the last layer"
    if data.values.ndim > 2:
        return "; give a model of your own"
    return f"; give model = {CONV if len(data.sample_shape) == 3 else DENSE!r}, whose outputs follow from the data"


def _misfit(rows: ComparedRows) -> str:
    """Return the fault of the values that a metric is to compare, empty without a fault."""
    outputs, targets = rows.outputs, rows.targets
    if rows.kind is not LossKind.CLASSES:
        return "" if outputs.shape == targets.shape else f"{targets.shape[1:]!r}, not {outputs.shape[1:]!r} as outputs"
    if targets.dtype.kind not in "iu":
        return f"of dtype {str(targets.dtype)!r}"
    if outputs.ndim != 2 or len(outputs) != len(targets):
        return f"{len(targets)} for outputs of shape {outputs.shape!r}"
    odd = targets[(targets < 0) | (targets >= outputs.shape[1])]
    return f"{int(odd[0])} for {outputs.shape[1]} outputs" if len(odd) else ""


def _own_targets(targets: Array, library: LossLibrary) -> Any:
    """Return labels as the library takes them, records as a dictionary by their names."""
    names = targets.dtype.names
    if names is None:
        return library.constant(targets)
    return {name: library.constant(np.ascontiguousarray(targets[name])) for name in names}
