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
from lockstep.packing.tables import TableBatch, TextValues, open_table
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
    opened, names = open_table(table, lambda count: None), [column.name for column in manifest.columns]
    opened.check(names)
    for batch in opened.batches(names):
        outputs = trained.model.outputs(preparation.images(samples_of(manifest.columns, batch)))
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


def samples_of(columns: Sequence[Column], batch: TableBatch) -> NDArray[np.float32]:
    """Return the rows of a table as samples, (n, columns); DataError for what the training set did not have."""
    samples = np.empty((batch.count, len(columns)), np.float32)
    for number, column in enumerate(columns):
        values = _numbers(column, batch)
        if not np.isfinite(values).all():
            row = batch.row + int(np.argmax(~np.isfinite(values)))
            named = one_line(column.name, 60)
            raise DataError(f"{batch.named}: row {row}, column {named!r}: is missing: expected a value")
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
    for index, text in enumerate(values.texts):
        if text not in codes:
            row = batch.row + int(np.argmax(values.indices == index))
            there = ", ".join(one_line(each, 20) for each in column.categories[:8])
            raise DataError(
                f"{batch.named}: row {row}, column {named!r}: {one_line(text, 60)!r} did not occur in training: "
                f"expected one of {there}"
            )
    return np.array([*map(codes.__getitem__, values.texts), codes.get("", np.nan)])[values.indices]
