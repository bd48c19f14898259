"""Predict from Python with a run's model: from the rows of a table, or from arrays of samples."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.array_source import as_samples
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import FolderManifest, Reading
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.records import as_input, as_records
from lockstep.common.errors import DataError
from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.numerics.choice import prefer_numerics
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.packing.options import Spelling
from lockstep.results.evaluation.row_predictions import RowPrediction, problems_text
from lockstep.runs.optional_packages import demand
from lockstep.runs.trained_model import Trained, dataset_of, table_of

#: Samples that are predicted at once.
AT_ONCE = 256


@dataclass(frozen=True)
class RunPredictor:
    """A trained model that takes what its training data was made of."""

    trained: Trained
    #: How the table was packed that the data is, or the data.
    data: FolderManifest | TrainTest

    @classmethod
    def of(cls, trained: Trained) -> "RunPredictor":
        return cls(trained, table_of(trained.job) or dataset_of(trained.job))

    def labels(self, rows: Any, **reading: Any) -> NDArray[Any]:
        """Return the class of each row, (n,), or its numbers, (n,) or (n, targets); as `Run.predict`."""
        if isinstance(self.data, TrainTest):
            return self._labels_of(self.data, rows)
        found = self._of_table(self.data, rows, self.data.reading.but(**reading))
        if self.data.classes:
            # As texts if each row has one.
            names = [row.name or None for row in found]
            return np.array(names, dtype=object if None in names else None)
        return _stacked(found, len(self.data.targets), squeezes=True)

    def values(self, rows: Any, **reading: Any) -> NDArray[np.float64]:
        """Return the probability of each class, (n, classes)."""
        if isinstance(self.data, TrainTest):
            outputs = self._outputs(self.data, rows)
            if self._kind is LossKind.LABELS:
                return np.asarray(0.5 * (1.0 + np.tanh(0.5 * outputs.astype(np.float64))))
            with no_grad():
                shares = F.softmax(Tensor(np.moveaxis(outputs, class_axis(outputs, self.data), -1))).data
            return np.asarray(shares, np.float64)
        return _stacked(
            self._of_table(self.data, rows, self.data.reading.but(**reading)), self.data.classes, squeezes=False
        )

    def _of_table(self, manifest: FolderManifest, rows: Any, reading: Reading) -> list[RowPrediction]:
        demand("pyarrow", "data", "predict")
        # Here, as the extra may be missing if nobody predicts.
        from lockstep.results.evaluation.table_predictions import TablePredictor

        with computing(), kept_numerics():
            prefer_numerics(self.trained.job.numerics)
            found = list(TablePredictor(self.trained, manifest, reading, Spelling.PYTHON).predict(rows))
        problems = [row.problem for row in found if row.problem]
        if problems:
            # Where `Run.predict` was called.
            warnings.warn(problems_text(problems, len(found)), stacklevel=4)
        return found

    def _labels_of(self, data: TrainTest, rows: Any) -> NDArray[Any]:
        outputs = self._outputs(data, rows)
        if self._kind is LossKind.LABELS:
            return (outputs > 0.0).astype(np.int64)
        if self._kind is not LossKind.CLASSES:
            return np.asarray(outputs, np.float64)
        places: NDArray[Any] = outputs.argmax(axis=class_axis(outputs, data))
        return np.array(data.class_names)[places] if data.class_names else places

    @property
    def _kind(self) -> LossKind:
        return kind_of(self.trained.job.loss)

    @computing()
    @kept_numerics()
    def _outputs(self, data: TrainTest, rows: Any) -> NDArray[Any]:
        prefer_numerics(self.trained.job.numerics)
        train = data.train
        if train.images.dtype.names:
            return self._answers(self._records(train, rows), data)
        given = np.asarray(rows, np.float32 if train.images.dtype == np.float32 else None)
        samples = as_samples("rows", given)
        if samples.shape[1:] != train.sample_shape or samples.dtype != train.images.dtype:
            raise DataError(
                f"rows of shape {given.shape} and dtype {str(samples.dtype)!r}: expected "
                f"{_expected_shape(train.sample_shape)} and {str(train.images.dtype)!r}, as it was trained on"
            )
        return self._answers(samples, data)

    def _records(self, train: Dataset, rows: Any) -> NDArray[Any]:
        """Return several arrays of each sample, given by name or in order, as the training set has them."""
        kinds, names = train.images.dtype, train.images.dtype.names or ()
        given = rows if isinstance(rows, Mapping) else dict(zip(names, rows, strict=False))
        if set(given) != set(names):
            raise DataError(f"inputs {', '.join(map(repr, given))}: expected {', '.join(map(repr, names))}")
        arrays = {name: as_input(repr(name), np.asarray(given[name])) for name in names}
        records = as_records(arrays)
        if records.dtype != kinds:
            raise DataError(f"inputs of shapes and dtypes {records.dtype}: expected {kinds}, as it was trained on")
        return records

    def _answers(self, samples: NDArray[Any], data: TrainTest) -> NDArray[Any]:
        """Return the outputs of stored samples."""
        preparation = Preparation.of(data.train) if self.trained.job.normalize else Preparation(0.0, 1.0)
        parts = [samples[begin : begin + AT_ONCE] for begin in range(0, len(samples), AT_ONCE)]
        return np.concatenate([self.trained.model.outputs(preparation.images(part)).copy() for part in parts])


def _expected_shape(sample_shape: tuple[int, ...]) -> str:
    """Return the shapes that samples may have: an axis of one channel was perhaps not in the data."""
    shapes = [sample_shape[1:]] * (len(sample_shape) == 3 and sample_shape[0] == 1) + [sample_shape]
    return " or ".join(f"({', '.join(map(str, ('n', *shape)))})" for shape in shapes)


def class_axis(outputs: NDArray[Any], data: TrainTest) -> int:
    """Return which axis of outputs has the classes: the last one, or that after the samples' if there are places."""
    places = data.train.values.shape[1:]
    return -1 if outputs.shape[1:-1] == places and len(places) < 2 else 1


def _stacked(found: Sequence[RowPrediction], width: int, *, squeezes: bool) -> NDArray[np.float64]:
    nothing = (np.nan,) * width
    numbers = np.array([row.values or nothing for row in found], np.float64).reshape(len(found), width)
    return numbers[:, 0] if squeezes and width == 1 else numbers
