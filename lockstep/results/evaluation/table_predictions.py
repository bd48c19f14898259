"""Predict from the rows of a table, which become samples as those of the training set did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.folder import Column, FolderManifest, Reading
from lockstep.common.data.preparation import Preparation
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.csv_table import open_table
from lockstep.packing.encoding import spread
from lockstep.packing.options import MISSING_TEXT, PackOptions, Spelling
from lockstep.packing.pack_table import opened_frame
from lockstep.packing.tables import ColumnKind, NumberValues, TableBatch
from lockstep.packing.texts import numbers_of
from lockstep.results.evaluation.row_predictions import RowPrediction, class_names_of
from lockstep.runs.trained_model import Trained, dataset_of

#: What rows to predict come from: a file, or a frame of any library.
Rows = Any


class UnusableRowError(DataError):
    """A row has a value that the training set did not have; the text has the row and the column."""


@dataclass(frozen=True)
class TablePredictor:
    """A model that was trained on a table."""

    trained: Trained
    manifest: FolderManifest
    #: How a table is read: as that of the training, unless somebody gives something else.
    reading: Reading
    #: How messages name its options.
    spelled: Spelling = Spelling.FLAGS

    @property
    def _options(self) -> PackOptions:
        reading = self.reading
        return PackOptions(
            na=tuple(reading.na),
            decimal=reading.decimal,
            delimiter=reading.delimiter,
            encoding=reading.encoding,
            spelled=self.spelled,
        )

    def predict(self, rows: Rows) -> Iterator[RowPrediction]:
        """Return a prediction, or a problem, for each row; DataError if the rows cannot be read as a table."""
        for batch in self._batches(rows, self.manifest.columns):
            yield from self._of_batch(batch)

    def test_set(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the samples of a table that has the targets too, (n, inputs), and its labels, (n, targets).

        Labels are the places of classes, or numbers that are scaled as in training. DataError names the first row that
        cannot be used.
        """
        manifest, options = self.manifest, self._options
        names, targets = class_names_of(manifest), manifest.targets
        if manifest.classes:
            targets = [Column(name=target.name, categories=names) for target in targets]
        batches = self._batches(rows, [*manifest.columns, *targets])
        parts = [[samples_of(part, batch, options) for part in (manifest.columns, targets)] for batch in batches]
        if not parts:
            raise DataError(f"{rows}: has no rows: expected some to test with")
        samples, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        return samples, labels

    def _batches(self, rows: Rows, columns: Sequence[Column]) -> Iterator[TableBatch]:
        options, opens = self._options, open_table if isinstance(rows, str | Path) else opened_frame
        opened = opens(Path(rows) if opens is open_table else rows, lambda count: None, options)
        names, how = [column.name for column in columns], self._as_in_training() if opens is open_table else ""
        try:
            there = opened.names()
            if (absent := next((name for name in names if name not in there), None)) is not None:
                # A file that is read wrongly has none of the columns, or not those with letters of another encoding.
                how = how if not set(names) & set(there) or not absent.isascii() else ""
                raise DataError(
                    f"{opened.named}: has no column {one_line(absent, 60)!r}, which that of the training has: it has "
                    f"{', '.join(one_line(other, 40) for other in there[:12])}{', …' if len(there) > 12 else ''}"
                )
            opened.check(names)
        except DataError as error:
            raise DataError(f"{error}{how}") from None
        yield from opened.batches(names)

    def _as_in_training(self) -> str:
        """Return how a file is read that is not as tables usually are, with the options that change it."""
        named = {"encoding": self.reading.encoding, "delimiter": self.reading.delimiter}
        given = [self.spelled(name, value) for name, value in named.items() if value is not None]
        # In words, since a table may have been packed from Python and be predicted from with flags.
        return f"; it was read as in training, with {self.spelled.together(*given)}: give others" if given else ""

    def _of_batch(self, batch: TableBatch) -> Iterator[RowPrediction]:
        parts = list(_parts(self.manifest.columns, batch, self._options))
        usable = [part for part in parts if not isinstance(part, str)]
        found = iter(self._of_samples(np.concatenate(usable)) if usable else ())
        for part in parts:
            yield from [RowPrediction(problem=part)] if isinstance(part, str) else islice(found, len(part))

    @cached_property
    def _preparation(self) -> Preparation:
        """As in training: without the samples of a validation set, the moments are others than the table's."""
        job = self.trained.job
        return Preparation.of(dataset_of(job).train) if job.normalize else Preparation(0.0, 1.0)

    def _of_samples(self, samples: NDArray[np.float32]) -> Iterator[RowPrediction]:
        manifest = self.manifest
        outputs = self.trained.model.outputs(self._preparation.images(samples))
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


def _parts(columns: Sequence[Column], batch: TableBatch, options: PackOptions) -> Iterator[NDArray[np.float32] | str]:
    """Return the samples of the rows in order, in several parts, and what is wrong with each row that has none."""
    try:
        yield samples_of(columns, batch, options)
    except UnusableRowError as error:
        if batch.count == 1:
            yield str(error)
            return
        # By halves: what is wrong with one row is found again, and few rows have something wrong.
        half = batch.count // 2
        yield from _parts(columns, batch.part(0, half), options)
        yield from _parts(columns, batch.part(half, batch.count), options)


def samples_of(columns: Sequence[Column], batch: TableBatch, options: PackOptions) -> NDArray[np.float32]:
    """Return the rows of a table as samples, (n, inputs); UnusableRowError for what the training set did not have."""
    samples = np.empty((batch.count, len(columns)), np.float32)
    for number, column in enumerate(columns):
        values = _codes(column, batch) if column.categories else _numbers(column, batch, options)
        if not np.isfinite(values).all():
            row = int(np.argmax(~np.isfinite(values)))
            what = "is missing: expected a value" if np.isnan(values[row]) else "is infinite: expected a finite number"
            raise UnusableRowError(f"{batch.place(row, column.name)}: {what}")
        samples[:, number] = (values - column.mean) / column.std
    return spread(samples, columns)


def _numbers(column: Column, batch: TableBatch, options: PackOptions) -> NDArray[np.float64]:
    values = batch.columns[column.name]
    if isinstance(values, NumberValues):
        numbers = values.values
    else:
        # What has no kind of its own in the manifest: the first that leaves no text over.
        kinds = (ColumnKind.NUMBER, ColumnKind.DATE, ColumnKind.BOOLEAN)
        found = [values.numbers(kind, options.decimal) for kind in kinds]
        numbers = min(found, key=lambda each: np.count_nonzero(np.isnan(each)))
        is_odd = np.isnan(numbers) & ~values.is_missing
        if is_odd.any():
            row = int(np.argmax(is_odd))
            raise UnusableRowError(f"{batch.place(row, column.name)}: {_oddity(column, values.at(row), options)}")
    return numbers if column.missing is None else np.where(np.isnan(numbers), column.missing, numbers)


def _oddity(column: Column, text: str, options: PackOptions) -> str:
    """Return why a text is none of the numbers of a column, and what to type if another reading makes it one."""
    shown, other = one_line(text, 60), "." if options.decimal == "," else ","
    if not np.isnan(numbers_of(pa.array([text]), other)).any():
        begins = f"the {'comma' if other == ',' else 'point'} begins its fraction"
        return f"{shown!r} is not a number: give {options.spelled('decimal', other)} if {begins}"
    fact = f"{shown!r} is not a number, a date such as 2024-12-31, or true or false, as all values were in training"
    if column.missing is None:
        return fact
    return f"{fact}: give {options.spelled('na', [text])} if it stands for a missing value"


def _codes(column: Column, batch: TableBatch) -> NDArray[np.float64]:
    texts = batch.columns[column.name].as_texts()
    found = texts.codes(column.categories)
    is_new = np.isnan(found) & ~texts.is_missing
    if is_new.any():
        row = int(np.argmax(is_new))
        there = ", ".join(one_line(each, 20) or MISSING_TEXT for each in column.categories[:8])
        raise UnusableRowError(
            f"{batch.place(row, column.name)}: {one_line(texts.at(row), 60)!r} did not occur in training: expected one "
            f"of {there}"
        )
    return found
