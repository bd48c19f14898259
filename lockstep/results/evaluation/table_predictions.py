"""Predict from the rows of a table, which become samples as those of the training set did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.folder import Column, FolderManifest
from lockstep.common.data.preparation import Preparation
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.pack_table import opened_frame
from lockstep.packing.tables import TableBatch, TextValues, open_table
from lockstep.results.evaluation.row_predictions import RowPrediction, class_names_of
from lockstep.runs.trained_model import Trained

#: What rows to predict come from: a file, or a frame of any library.
Rows = Any


class UnusableRowError(DataError):
    """A row has a value that the training set did not have; the text has the row and the column."""


@dataclass(frozen=True)
class TablePredictor:
    """A model that was trained on a table."""

    trained: Trained
    manifest: FolderManifest

    def predict(self, rows: Rows) -> Iterator[RowPrediction]:
        """Return a prediction, or a problem, for each row; DataError if the rows cannot be read as a table."""
        is_path = isinstance(rows, str | Path)
        opened = open_table(Path(rows), lambda count: None) if is_path else opened_frame(rows, lambda count: None)
        names = [column.name for column in self.manifest.columns]
        opened.check(names)
        for batch in opened.batches(names):
            yield from self._of_batch(batch)

    def _of_batch(self, batch: TableBatch) -> Iterator[RowPrediction]:
        parts = list(_parts(self.manifest.columns, batch))
        usable = [part for part in parts if not isinstance(part, str)]
        found = iter(self._of_samples(np.concatenate(usable)) if usable else ())
        for part in parts:
            yield from [RowPrediction(problem=part)] if isinstance(part, str) else islice(found, len(part))

    def _of_samples(self, samples: NDArray[np.float32]) -> Iterator[RowPrediction]:
        manifest = self.manifest
        scales = self.trained.job.normalize
        preparation = Preparation(manifest.mean, manifest.std) if scales else Preparation(0.0, 1.0)
        outputs = self.trained.model.outputs(preparation.images(samples))
        if manifest.classes:
            names = class_names_of(manifest)
            with no_grad():
                shares = F.softmax(Tensor(outputs)).data
            for row in shares:
                yield RowPrediction(tuple(row.tolist()), names[int(row.argmax())])
            return
        scale, offset = (np.array([getattr(each, field) for each in manifest.targets]) for field in ("std", "mean"))
        for row in outputs.astype(np.float64) * scale + offset:
            yield RowPrediction(tuple(row.tolist()))


def _parts(columns: Sequence[Column], batch: TableBatch) -> Iterator[NDArray[np.float32] | str]:
    """Return the samples of the rows in order, in several parts, and what is wrong with each row that has none."""
    try:
        yield samples_of(columns, batch)
    except UnusableRowError as error:
        if batch.count == 1:
            yield str(error)
            return
        # By halves: what is wrong with one row is found again, and few rows have something wrong.
        half = batch.count // 2
        yield from _parts(columns, batch.part(0, half))
        yield from _parts(columns, batch.part(half, batch.count))


def samples_of(columns: Sequence[Column], batch: TableBatch) -> NDArray[np.float32]:
    """Return the rows of a table as samples, (n, columns).

    Raises UnusableRowError for a value that the training set did not have, DataError for a column.
    """
    samples = np.empty((batch.count, len(columns)), np.float32)
    for number, column in enumerate(columns):
        values = _numbers(column, batch)
        if not np.isfinite(values).all():
            row = batch.row + int(np.argmax(~np.isfinite(values)))
            named = one_line(column.name, 60)
            raise UnusableRowError(f"{batch.named}: row {row}, column {named!r}: is missing: expected a value")
        samples[:, number] = (values - column.mean) / column.std
    return samples


def _numbers(column: Column, batch: TableBatch) -> NDArray[np.float64]:
    values, named = batch.columns[column.name], one_line(column.name, 60)
    if not isinstance(values, TextValues):
        if column.categories:
            raise DataError(f"{batch.named}: column {named!r} has numbers: expected texts, as in training")
        return values if column.missing is None else np.where(np.isnan(values), column.missing, values)
    if not column.categories:
        raise DataError(f"{batch.named}: column {named!r} has texts: expected numbers, as in training")
    codes = {text: float(code) for code, text in enumerate(column.categories)}
    present = set(values.indices.tolist())
    for index, text in enumerate(values.texts):
        if text not in codes and index in present:
            row = batch.row + int(np.argmax(values.indices == index))
            there = ", ".join(one_line(each, 20) for each in column.categories[:8])
            raise UnusableRowError(
                f"{batch.named}: row {row}, column {named!r}: {one_line(text, 60)!r} did not occur in training: "
                f"expected one of {there}"
            )
    return np.array([codes.get(text, np.nan) for text in (*values.texts, "")])[values.indices]
