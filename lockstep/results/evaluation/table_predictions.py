"""Predict from the rows of a table, which become samples as those of the training set did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.folder import Column, FolderManifest
from lockstep.common.data.preparation import Preparation
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.csv_table import open_table
from lockstep.packing.encoding import spread
from lockstep.packing.options import PackOptions
from lockstep.packing.tables import ColumnKind, NumberValues, TableBatch
from lockstep.runs.trained_model import Trained


@dataclass(frozen=True)
class RowPrediction:
    """What is predicted of one row."""

    #: Numbers in the units of the table, one for each target; of a classifier the probabilities of the classes.
    values: tuple[float, ...]
    #: The likeliest class; empty for a regression.
    name: str = ""


def predict_rows(trained: Trained, manifest: FolderManifest, table: Path) -> Iterator[RowPrediction]:
    """Return a prediction for each row; DataError with row and column if one cannot be read."""
    preparation = Preparation(manifest.mean, manifest.std) if trained.job.normalize else Preparation(0.0, 1.0)
    options = PackOptions(na=tuple(manifest.reading.na), decimal=manifest.reading.decimal)
    opened, names = open_table(table, lambda count: None, options), [column.name for column in manifest.columns]
    opened.check(names)
    for batch in opened.batches(names):
        outputs = trained.model.outputs(preparation.images(samples_of(manifest.columns, batch, options.decimal)))
        yield from _predictions(manifest, outputs)


def _predictions(manifest: FolderManifest, outputs: Array) -> Iterator[RowPrediction]:
    if manifest.classes:
        names = manifest.class_names or [str(label) for label in range(manifest.classes)]
        with no_grad():
            shares = F.softmax(Tensor(outputs)).data
        for row in shares:
            yield RowPrediction(tuple(row.tolist()), names[int(row.argmax())])
        return
    scale, offset = (np.array([getattr(each, field) for each in manifest.targets]) for field in ("std", "mean"))
    for row in outputs.astype(np.float64) * scale + offset:
        yield RowPrediction(tuple(row.tolist()))


def samples_of(columns: Sequence[Column], batch: TableBatch, decimal: str = ".") -> NDArray[np.float32]:
    """Return the rows of a table as samples, (n, inputs); DataError for what the training set did not have."""
    samples = np.empty((batch.count, len(columns)), np.float32)
    for number, column in enumerate(columns):
        values = _codes(column, batch) if column.categories else _numbers(column, batch, decimal)
        if not np.isfinite(values).all():
            row = int(np.argmax(~np.isfinite(values)))
            what = "is missing: expected a value" if np.isnan(values[row]) else "is infinite: expected a finite number"
            raise DataError(f"{batch.place(row, column.name)}: {what}")
        samples[:, number] = (values - column.mean) / column.std
    return spread(samples, columns)


def _numbers(column: Column, batch: TableBatch, decimal: str) -> NDArray[np.float64]:
    values = batch.columns[column.name]
    if isinstance(values, NumberValues):
        numbers = values.values
    else:
        # What has no kind of its own in the manifest: the first that leaves no text over.
        found = [values.numbers(kind, decimal) for kind in (ColumnKind.NUMBER, ColumnKind.DATE, ColumnKind.BOOLEAN)]
        numbers = min(found, key=lambda each: np.count_nonzero(np.isnan(each)))
        is_odd = np.isnan(numbers) & ~values.is_missing
        if is_odd.any():
            row = int(np.argmax(is_odd))
            shown = one_line(values.at(row), 60)
            raise DataError(f"{batch.place(row, column.name)}: {shown!r} is not a number, as all were in training")
    return numbers if column.missing is None else np.where(np.isnan(numbers), column.missing, numbers)


def _codes(column: Column, batch: TableBatch) -> NDArray[np.float64]:
    texts = batch.columns[column.name].as_texts()
    found = texts.codes(column.categories)
    is_new = np.isnan(found) & ~texts.is_missing
    if is_new.any():
        row = int(np.argmax(is_new))
        there = ", ".join(one_line(each, 20) for each in column.categories[:8])
        raise DataError(
            f"{batch.place(row, column.name)}: {one_line(texts.at(row), 60)!r} did not occur in training: expected one "
            f"of {there}"
        )
    return found
