"""From the columns of a table to samples and labels: codes for texts, scaled numbers, classes by name.

A column's mean is known at the end only: so rows go to a scratch file first, and from there, scaled, to the
folder. Only the rows of the training set count for means.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.data.columns import Column, ColumnKind, Floats, samples_of
from lockstep.common.data.folder import PARTS, FolderManifest, Origin, PartName, Reading
from lockstep.common.data.folder_writer import FolderWriter
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.options import Division, Missing, PackOptions, in_groups
from lockstep.packing.survey import ColumnPlan, TablePlan
from lockstep.packing.tables import TableBatch, ahead

#: Rows that are scaled at once.
BLOCK_ROWS = 2**13

#: Gives the rows of a set again, in blocks.
Blocks = Callable[[], Iterator[Floats]]


@dataclass
class Scratch:
    """The rows of one set on their way, in a file."""

    path: Path
    #: The values of a row.
    width: int
    rows: int = 0

    def append(self, rows: Floats) -> None:
        with self.path.open("ab") as file:
            rows.tofile(file)
        self.rows += len(rows)

    def blocks(self, columns: slice = slice(None)) -> Iterator[Floats]:
        """Return the rows again, or some columns of them, in blocks that do not depend on how they came."""
        if not self.rows:
            return
        with self.path.open("rb") as file:
            while len(values := np.fromfile(file, np.float64, BLOCK_ROWS * self.width)):
                yield values.reshape(-1, self.width)[:, columns]


@dataclass
class TableEncoder:
    """A table on its way into a folder."""

    writer: FolderWriter
    options: PackOptions
    plan: TablePlan
    parts: dict[PartName, Scratch] = field(init=False)

    def __post_init__(self) -> None:
        width = len(self.plan.features) + len(self.plan.targets)
        self.parts = {name: Scratch(self.writer.scratch(name), width) for name in PARTS}

    def read(self, name: PartName, batches: Iterator[TableBatch], division: Division | None) -> None:
        """Read a table into a set, or into both as it is divided."""
        for (rows,) in in_groups((rows,) for rows in ahead(map(self._rows, batches))):
            if division is None:
                self.parts[name].append(rows)
            else:
                marks = division.marks(len(rows))
                self.parts["train"].append(rows[~marks])
                self.parts["test"].append(rows[marks])

    def _rows(self, batch: TableBatch) -> Floats:
        plans = (*self.plan.features, *self.plan.targets)
        rows = np.empty((batch.count, len(plans)), np.float64)
        for number, plan in enumerate(plans):
            rows[:, number] = batch.numbers(plan.column, self.options.decimal)
        needed = self.options.needed(batch.columns)
        return rows[batch.has_all(needed)] if needed else rows

    def finish(self, origin: Origin) -> FolderManifest:
        """Write both sets and the manifest."""
        train, options, classes = self.parts["train"], self.options, self.plan.targets[0].column.categories
        count = len(self.plan.features)
        columns = _scaled(self.plan.features, partial(train.blocks, slice(count)), options, options.missing)
        targets = [plan.column for plan in self.plan.targets]
        if not classes:
            targets = _scaled(self.plan.targets, partial(train.blocks, slice(count, None)), options, None)

        def encoded(block: Floats) -> tuple[NDArray[np.float32], NDArray[Any]]:
            samples, labels = block[:, :count], block[:, count:]
            codes = labels[:, 0].astype(np.int64) if classes else _converted(labels, targets)
            return _converted(samples, columns), codes

        for name, part in self.parts.items():
            for rows in ahead(map(encoded, part.blocks())):
                self.writer.append(name, *rows)
        return self.writer.finish(
            kind="table",
            classes=len(classes),
            origin=origin,
            class_names=classes if classes != [str(number) for number in range(len(classes))] else [],
            columns=columns,
            targets=targets,
            reading=Reading(
                na=list(options.na),
                decimal=options.decimal,
                delimiter=options.delimiter,
                encoding=options.encoding,
            ),
        )


def _converted(values: Floats, columns: Sequence[Column]) -> NDArray[np.float32]:
    """Return values as samples; DataError for a column that float32 does not hold then."""
    found = samples_of(values, columns)
    if not np.isfinite(found).all():
        for number, column in enumerate(columns):
            deviations = float(np.nanmax(np.abs(values[:, number] - column.mean))) / column.std
            if deviations > float(np.finfo(np.float32).max):
                raise DataError(
                    f"column {one_line(column.name, 60)!r} has values that are {deviations:.1e} deviations of the "
                    "training set from its mean: expected fewer; divide the column, or leave it out"
                )
    return found


def _scaled(plans: Sequence[ColumnPlan], blocks: Blocks, options: PackOptions, missing: Missing | None) -> list[Column]:
    """Return columns with their fillings and their scale, of the values in the training set."""
    fills = np.full(len(plans), missing if isinstance(missing, float) else np.nan)
    fills = _means(blocks) if missing == "mean" else fills
    is_named = np.array([plan.column.kind is ColumnKind.CATEGORY for plan in plans])
    fills[is_named] = np.nan
    means, stds = np.zeros(len(plans)), np.ones(len(plans))
    if options.standardize:
        means, stds = _moments(blocks, fills, np.fmax([plan.largest for plan in plans], np.abs(fills)))
    return [
        replace(
            plan.column,
            missing=None if np.isnan(fill) else float(fill),
            mean=0.0 if plan.column.one_hot else float(mean),
            std=1.0 if plan.column.one_hot else float(std),
        )
        for plan, fill, mean, std in zip(plans, fills, means, stds, strict=True)
    ]


def _moments(blocks: Blocks, fills: Floats, largest: Floats) -> tuple[Floats, Floats]:
    """Return mean and deviation of each column, 1 where that is 0; none of its values is above `largest`.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979: the
    squares are about the mean of each block, so that large numbers that differ little keep their digits. Values are
    divided by a power of two, which costs no bit, so that squares of tiny ones are not 0.
    """
    _, exponents = np.frexp(largest)
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    low, high = np.full(len(fills), np.inf), np.full(len(fills), -np.inf)
    for values in blocks():
        block = np.ldexp(np.where(np.isnan(values), fills, values), -exponents)
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
        rows, here = len(block), block.mean(axis=0)
        block -= here
        between = here - mean
        squares = squares + np.einsum("ij,ij->j", block, block) + between**2 * (count * rows / (count + rows))
        mean = mean + between * (rows / (count + rows))
        count += rows
    # The mean of equal values may be rounded, and their deviation is then not 0.
    std = np.where(low == high, 0.0, np.sqrt(squares / max(1, count)))
    mean, std = np.ldexp(np.where(low == high, low, mean), exponents), np.ldexp(std, exponents)
    return mean, np.where(std > 0, std, 1.0)


def _means(blocks: Blocks) -> Floats:
    """Return the mean of each column over the values that are not missing."""
    total, count, low, high = np.zeros(()), np.zeros(()), np.full((), np.inf), np.full((), -np.inf)
    for block in blocks():
        total, count = total + np.nansum(block, axis=0), count + (~np.isnan(block)).sum(axis=0)
        low, high = np.fmin(low, np.fmin.reduce(block, axis=0)), np.fmax(high, np.fmax.reduce(block, axis=0))
    # Not outside of the values, as a rounded mean of equal ones would be.
    return np.clip(total / np.maximum(1, count), np.where(count, low, 0.0), np.where(count, high, 0.0))
