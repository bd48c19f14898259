"""From the columns of a table to samples and labels: codes for texts, scaled numbers, classes by name.

What a column's mean is, is known at the end only: so rows go to a scratch file first, and from there, scaled, to the
folder. Only the rows of the training set count for means.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.folder import PARTS, Column, FolderManifest, Origin, PartName, Reading
from lockstep.common.data.folder_writer import FolderWriter
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.options import Division, Missing, PackOptions, in_groups
from lockstep.packing.survey import ColumnPlan, TablePlan
from lockstep.packing.tables import TableBatch
from lockstep.packing.texts import Floats

#: Rows that are scaled at once.
BLOCK_ROWS = 2**13

#: Values as they were read: of samples, or of labels.
Columns = NDArray[np.float32] | Floats


@dataclass
class Scratch:
    """The rows of one set on their way, in a file."""

    path: Path
    #: What a row is: its samples, float32 (features,), and its labels, float64 (targets,).
    row: np.dtype[np.void]
    rows: int = 0

    def append(self, samples: NDArray[np.float32], labels: Floats) -> None:
        rows = np.empty(len(samples), self.row)
        rows["samples"], rows["labels"] = samples, labels
        with self.path.open("ab") as file:
            rows.tofile(file)
        self.rows += len(rows)

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], Floats]]:
        """Return the rows again, in blocks that do not depend on how they came."""
        if not self.rows:
            return
        with self.path.open("rb") as file:
            while len(rows := np.fromfile(file, self.row, BLOCK_ROWS)):
                yield rows["samples"], rows["labels"]


@dataclass
class TableEncoder:
    """A table on its way into a folder."""

    writer: FolderWriter
    options: PackOptions
    plan: TablePlan
    parts: dict[PartName, Scratch] = field(init=False)

    def __post_init__(self) -> None:
        features, targets = len(self.plan.features), len(self.plan.targets)
        row = np.dtype([("samples", np.float32, (features,)), ("labels", np.float64, (targets,))])
        self.parts = {name: Scratch(self.writer.scratch(name), row) for name in PARTS}

    def read(self, name: PartName, batches: Iterator[TableBatch], division: Division | None) -> int:
        """Read a table into a set, or into both as it is divided; return how many rows it has."""
        count = 0
        for samples, labels in in_groups(map(self._rows, batches)):
            count += len(labels)
            if division is None:
                self.parts[name].append(samples, labels)
            else:
                marks = division.marks(len(labels))
                self.parts["train"].append(samples[~marks], labels[~marks])
                self.parts["test"].append(samples[marks], labels[marks])
        return count

    def _rows(self, batch: TableBatch) -> tuple[NDArray[np.float32], Floats]:
        samples = np.empty((batch.count, len(self.plan.features)), np.float32)
        labels = np.empty((batch.count, len(self.plan.targets)), np.float64)
        for number, column in enumerate(self.plan.features):
            np.subtract(column.encode(batch, self.options), column.offset, out=samples[:, number], casting="same_kind")
        for number, column in enumerate(self.plan.targets):
            labels[:, number] = column.encode(batch, self.options)
        if self.options.missing != "drop":
            return samples, labels
        whole = batch.is_whole()
        return samples[whole], labels[whole]

    def finish(self, origin: Origin) -> FolderManifest:
        """Write both sets and the manifest."""
        train, targets, options = self.parts["train"], self.plan.targets, self.options
        scale = _scale_of(
            lambda: (samples for samples, _ in train.blocks()), self.plan.features, options, options.missing
        )
        names, label_scale = targets[0].names, None
        if names is None:
            label_scale = _scale_of(lambda: (labels for _, labels in train.blocks()), targets, options, None)
        for name, part in self.parts.items():
            for samples, labels in part.blocks():
                encoded = labels[:, 0].astype(np.int64) if label_scale is None else label_scale.apply(labels)
                self.writer.append(name, spread(scale.apply(samples), scale.columns()), encoded)
        return self.writer.finish(
            kind="table",
            classes=len(names or ()),
            origin=origin,
            class_names=list(names) if names and names != [str(number) for number in range(len(names))] else [],
            columns=scale.columns(),
            targets=[Column(name=targets[0].name)] if label_scale is None else label_scale.columns(),
            reading=Reading(
                na=list(options.na),
                decimal=options.decimal,
                delimiter=options.delimiter,
                encoding=options.encoding,
            ),
        )


def spread(samples: NDArray[np.float32], columns: Sequence[Column]) -> NDArray[np.float32]:
    """Return samples, (n, columns), with an input for each category of the columns that have them: (n, inputs)."""
    if not any(column.one_hot for column in columns):
        return samples
    inputs = []
    for number, column in enumerate(columns):
        values = samples[:, number, np.newaxis]
        inputs.append(values == np.arange(len(column.categories)) if column.one_hot else values)
    return np.concatenate(inputs, axis=1, dtype=np.float32)


@dataclass
class _Scale:
    """What becomes of the values of each column."""

    plans: Sequence[ColumnPlan]
    mean: Floats
    std: Floats
    #: What stands for a missing value, before it is scaled; NaN if none may be missing.
    fill: Floats

    def apply(self, columns: Columns) -> NDArray[np.float32]:
        """Return the values scaled; DataError for a column that float32 does not hold then."""
        values = self.prepared(columns)
        values -= self.mean
        values /= self.std
        with np.errstate(over="ignore"):
            scaled = values.astype(np.float32)
        if not np.isfinite(scaled).all():
            column = int(np.argmax(~np.isfinite(scaled).all(axis=0)))
            raise DataError(
                f"column {one_line(self.plans[column].name, 60)!r} has values that are {np.abs(values).max():.1e} "
                "deviations of the training set from its mean: expected fewer; divide the column, or leave it out"
            )
        return scaled

    def prepared(self, columns: Columns) -> Floats:
        """Return a copy of values, with nothing missing."""
        values = columns.astype(np.float64)
        if np.isfinite(self.fill).any():
            np.copyto(values, self.fill, where=np.isnan(values))
        return values

    def columns(self) -> list[Column]:
        """Return what a manifest says of the columns."""
        return [
            Column(
                name=plan.name,
                categories=list(plan.names or ()),
                mean=plan.offset + float(mean),
                std=float(std),
                missing=None if np.isnan(fill) else float(fill) + plan.offset,
                one_hot=plan.is_one_hot,
            )
            for plan, mean, std, fill in zip(self.plans, self.mean, self.std, self.fill, strict=True)
        ]


def _scale_of(
    blocks: Callable[[], Iterator[Columns]],
    plans: Sequence[ColumnPlan],
    options: PackOptions,
    missing: Missing | None,
) -> _Scale:
    """Return the scale of columns whose values in the training set `blocks` returns."""
    count = len(plans)
    scale = _Scale(plans, np.zeros(count), np.ones(count), np.full(count, np.nan))
    if isinstance(missing, float):
        scale.fill = np.array([missing - plan.offset for plan in plans])
    elif missing == "mean":
        scale.fill = _means(map(scale.prepared, blocks()))
    if options.standardize:
        scale.mean, scale.std = _moments(map(scale.prepared, blocks()))
        one_hot = [plan.is_one_hot for plan in plans]
        scale.mean[one_hot], scale.std[one_hot] = 0.0, 1.0
    return scale


def _moments(blocks: Iterable[Floats]) -> tuple[Floats, Floats]:
    """Return mean and deviation of each column, 1 where that is 0, of blocks of rows that are read once.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979: the
    squares are about the mean of each block, so that large numbers that differ little keep their digits.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        rows, here = len(block), block.mean(axis=0)
        block -= here
        between = here - mean
        squares = squares + np.einsum("ij,ij->j", block, block) + between**2 * (count * rows / (count + rows))
        mean = mean + between * (rows / (count + rows))
        count += rows
    std = np.sqrt(squares / max(1, count))
    return mean, np.where(std > 0, std, 1.0)


def _means(blocks: Iterable[Floats]) -> Floats:
    """Return the mean of each column over what is not missing."""
    total, count = np.zeros(()), np.zeros(())
    for block in blocks:
        total, count = total + np.nansum(block, axis=0), count + (~np.isnan(block)).sum(axis=0)
    return total / np.maximum(1, count)
