"""The loss of a job: a sum of losses of a model's outputs, and how many are right. Pure; holds no state.

A loss compares a sample's outputs with its *targets*: one class, a class for each place of a sequence, or real numbers.
Targets are what is counted, so that a mean is one over targets: over the characters of a text, for example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.dataset import Dataset
from lockstep.common.errors import DataError, ModelError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.tally import Tally


@dataclass(frozen=True)
class Objective:
    """The function that is minimised."""

    loss: str = "cross-entropy"
    label_smoothing: float = 0.0

    @classmethod
    def of(cls, job: Job) -> "Objective":
        return cls(job.loss, job.label_smoothing)

    @property
    def is_regression(self) -> bool:
        """Whether targets are real numbers, and no class is right or wrong."""
        return self.loss == "mse"

    def targets(self, labels: Array) -> Array:
        """Return samples' labels as the loss compares them: classes int64 (targets,), or float32 (n, outputs)."""
        if self.is_regression:
            return labels.reshape(len(labels), -1).astype(np.float32, copy=False)
        return labels.reshape(-1)

    def rows(self, outputs: Array) -> Array:
        """Return outputs with one row for each class that is a target: (n, t, classes) as (n·t, classes)."""
        return outputs.reshape(-1, outputs.shape[-1]) if outputs.ndim == 3 and not self.is_regression else outputs

    def training_loss(self, outputs: Tensor, targets: Array, reduction: str = "sum") -> Tensor:
        """Return the losses of outputs, summed, or their mean over the targets, as a tensor with a gradient."""
        return self._loss(outputs, targets, self.label_smoothing, reduction)

    def test_loss(self, outputs: Tensor, targets: Array) -> Tensor:
        """Return the sum of losses without label smoothing, which is for training only."""
        return self._loss(outputs, targets, 0.0, "sum")

    def _loss(self, outputs: Tensor, targets: Array, smoothing: float, reduction: str) -> Tensor:
        if self.is_regression:
            return F.mse_loss(outputs, targets, reduction=reduction)
        if outputs.ndim == 3:
            outputs = outputs.reshape(-1, outputs.shape[-1])
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction=reduction)

    def tally(self, loss: SupportsFloat, outputs: Array, targets: Array) -> Tally:
        """Return the tally of samples with that sum of losses."""
        return Tally(float(loss), self.correct(outputs, targets), targets.size)

    def correct(self, outputs: Array, targets: Array) -> int:
        """Return how many classes are predicted correctly; 0 for a regression."""
        if self.is_regression:
            return 0
        return int(np.count_nonzero(self.rows(outputs).argmax(axis=1) == targets))

    def check_labels(self, data: Dataset, class_names: Sequence[str] = ()) -> None:
        """Raise `DataError` for real numbers if the loss is one of classes, and for classes with names if it is not."""
        if self.is_regression and class_names:
            # Integers as labels may be numbers; the places of names in their order are not.
            raise DataError(
                f"the labels are {len(class_names)} classes with names ({one_line(class_names[0], 40)!r}, …), and loss "
                "= 'mse' needs numbers: expected loss = 'cross-entropy', or a table packed with --task numbers"
            )
        if not self.is_regression and not data.classes:
            raise DataError(
                "the labels are real numbers, and loss = 'cross-entropy' needs classes: expected integers "
                "(.astype(numpy.int64); a column of a table needs --task classes), or loss = 'mse' for a regression"
            )

    def check_fit(self, data: Dataset, output_shape: tuple[int, ...]) -> None:
        """Raise `ModelError` if the model's output for two samples of `data` is not what the loss compares."""
        labels = data.labels.shape[1:]
        if self.is_regression:
            expected, meaning = (
                (2, data.targets),
                f"one number for each of {data.targets} targets, as loss = 'mse' needs",
            )
        else:
            expected, meaning = (2, *labels, data.classes), f"one number for each of {data.classes} classes"
        if output_shape != expected:
            raise ModelError(
                f"the model turns 2 samples of shape {data.sample_shape} into an array of shape {output_shape}: "
                f"expected {expected}, {meaning}; change the last layer"
            )

    def guess(self, data: Dataset) -> float | None:
        """Return the loss of always predicting the targets' mean, against which R² is measured; None for classes."""
        if not self.is_regression:
            return None
        targets = self.targets(data.labels).astype(np.float64)
        return float(np.mean(np.square(targets - targets.mean(axis=0))))
