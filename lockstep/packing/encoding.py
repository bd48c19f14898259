"""From the columns of a table to samples and labels: codes for texts, scaled numbers, classes by name.

What a column's mean is, and which texts it has, is known at the end only: so rows go to a scratch file first, and from
there, scaled, to the folder. Only the rows of the training set count for means.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.folder import PARTS, Column, FolderManifest, Origin, PartName
from lockstep.common.data.folder_writer import FolderWriter
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.division import Division, in_groups
from lockstep.packing.options import Missing, PackOptions
from lockstep.packing.tables import TableBatch, TextValues

#: Most texts of a column that is learned from, and most classes.
MOST_CATEGORIES, MOST_CLASSES = 1000, 2**16
#: Whole numbers to predict are classes if they are no more than so many.
FEW = 100
#: Rows that are scaled at once.
BLOCK_ROWS = 2**13

Floats = NDArray[np.float64]
#: Values as they were read: of samples, or of labels.
Columns = NDArray[np.float32] | Floats


@dataclass
class ColumnEncoder:
    """One column while it is read: the codes of its texts, and the first of its numbers."""

    name: str
    is_target: bool
    #: What is subtracted while reading, so that large numbers keep their digits as float32: the first one.
    offset: float | None = None
    codes: dict[str, int] = field(default_factory=dict)
    is_text: bool = False
    #: The whole numbers that occurred; None if there are too many, or others.
    whole: set[float] | None = field(default_factory=set)
    #: The first text that is not a number, with its row.
    odd: tuple[int, str] | None = None

    def encode(self, batch: TableBatch, options: PackOptions) -> Floats:
        """Return the numbers of a batch, NaN for what is missing; DataError with row and column if it may not be."""
        values = batch.columns[self.name]
        if isinstance(values, TextValues):
            numbers = self._coded(batch, values, fills=options.missing not in (None, "drop") and not self.is_target)
        else:
            numbers = values
        finite = np.isfinite(numbers)
        if not finite.all():
            self._check(batch, numbers, finite, options)
        if self.is_target and not self.is_text and self.whole is not None:
            self._collect(numbers[finite])
        if self.offset is None and finite.any():
            is_shifted = options.standardize and not self.is_text and not self.is_target
            self.offset = float(numbers[finite][0]) if is_shifted else 0.0
        return numbers

    def _coded(self, batch: TableBatch, values: TextValues, *, fills: bool) -> Floats:
        self.is_text = True
        is_filled = fills and bool((values.indices < 0).any())
        texts = [*values.texts, ""] if is_filled else values.texts
        codes = [float(self.codes.setdefault(text, len(self.codes))) for text in texts]
        self._look_for_odd(batch, values)
        if len(self.codes) > (MOST_CLASSES if self.is_target else MOST_CATEGORIES):
            self._refuse(batch)
        # What is missing has the index -1, the last one.
        return np.array(codes if is_filled else [*codes, np.nan], np.float64)[values.indices]

    def _look_for_odd(self, batch: TableBatch, values: TextValues) -> None:
        """Record the first text that is not a number, since the others may be."""
        if self.odd is None:
            found = next((index for index, text in enumerate(values.texts) if not _is_number(text)), None)
            if found is not None:
                self.odd = (batch.row + int(np.argmax(values.indices == found)), values.texts[found])

    def _refuse(self, batch: TableBatch) -> None:
        """Raise DataError for too many different texts, unless the one that is no number has yet to be found."""
        named, numbers = one_line(self.name, 60), sum(map(_is_number, self.codes))
        if 2 * numbers < len(self.codes):
            what, most = (
                ("is to be predicted", MOST_CLASSES) if self.is_target else ("is learned from", MOST_CATEGORIES)
            )
            raise DataError(
                f"{batch.named}: column {named!r} {what} and has more than {most:,} different texts: choose others "
                "with --columns or --target"
            )
        if self.odd is not None:
            row, text = self.odd
            raise DataError(
                f"{batch.named}: row {row}, column {named!r}: {one_line(text, 60)!r} is not a number, as others in the "
                "column: correct it, or leave it empty"
            )

    def _check(self, batch: TableBatch, numbers: Floats, finite: NDArray[np.bool_], options: PackOptions) -> None:
        infinite = np.isinf(numbers)
        is_allowed = options.missing == "drop" or (options.missing is not None and not self.is_target)
        if infinite.any() or not is_allowed:
            at = int(np.argmax(infinite if infinite.any() else ~finite))
            place = f"{batch.named}: row {batch.row + at}, column {one_line(self.name, 60)!r}"
            if infinite.any():
                raise DataError(f"{place}: is not a finite number: correct it, or leave it empty")
            rule = "--missing drop" if self.is_target else "a rule: --missing drop, mean or a number"
            raise DataError(f"{place}: is missing: expected a value, or {rule}")

    def _collect(self, numbers: Floats) -> None:
        distinct = np.unique(numbers)
        assert self.whole is not None
        self.whole.update(distinct[:MOST_CLASSES].tolist())
        if len(self.whole) > MOST_CLASSES or not (distinct == np.rint(distinct)).all():
            self.whole = None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
    features: Sequence[ColumnEncoder]
    targets: Sequence[ColumnEncoder]
    parts: dict[PartName, Scratch] = field(init=False)
    notes: list[str] = field(default_factory=list)
    #: Rows that were left out.
    dropped: int = 0

    def __post_init__(self) -> None:
        features, targets = len(self.features), len(self.targets)
        row = np.dtype([("samples", np.float32, (features,)), ("labels", np.float64, (targets,))])
        self.parts = {name: Scratch(self.writer.scratch(name), row) for name in PARTS}

    def read(self, name: PartName, batches: Iterator[TableBatch], division: Division | None) -> None:
        """Read a table into a set, or into both as it is divided."""
        for samples, labels in in_groups(map(self._rows, batches)):
            if division is None:
                self.parts[name].append(samples, labels)
            else:
                marks = division.marks(len(labels))
                self.parts["train"].append(samples[~marks], labels[~marks])
                self.parts["test"].append(samples[marks], labels[marks])

    def _rows(self, batch: TableBatch) -> tuple[NDArray[np.float32], Floats]:
        samples = np.empty((batch.count, len(self.features)), np.float32)
        labels = np.empty((batch.count, len(self.targets)), np.float64)
        for number, encoder in enumerate(self.features):
            values = encoder.encode(batch, self.options)
            with np.errstate(over="ignore"):
                np.subtract(values, encoder.offset or 0.0, out=samples[:, number], casting="same_kind")
        for number, encoder in enumerate(self.targets):
            labels[:, number] = encoder.encode(batch, self.options)
        if self.options.missing != "drop":
            return samples, labels
        whole: NDArray[np.bool_] = np.asarray(np.isfinite(samples).all(axis=1) & np.isfinite(labels).all(axis=1))
        self.dropped += int(len(whole) - np.count_nonzero(whole))
        return samples[whole], labels[whole]

    def finish(self, origin: Origin) -> FolderManifest:
        """Write both sets and the manifest."""
        train = self.parts["train"]
        if not train.rows:
            raise DataError("no rows are left to learn from: expected some")
        if self.dropped:
            self.notes.append(f"{self.dropped:,} rows with a missing value were left out (--missing drop)")
        names, options = _classes_of(self.targets, self.options), self.options
        scale = _scale_of(lambda: (samples for samples, _ in train.blocks()), self.features, options, options.missing)
        label_scale = None
        if names is None:
            label_scale = _scale_of(lambda: (labels for _, labels in train.blocks()), self.targets, options, None)
        else:
            named = one_line(self.targets[0].name, 60)
            self.notes.append(f"{named!r} is predicted as one of {len(names)} classes (--task)")
        for name, part in self.parts.items():
            for samples, labels in part.blocks():
                encoded = _class_numbers(self.targets[0], labels) if label_scale is None else label_scale.apply(labels)
                self.writer.append(name, scale.apply(samples), encoded)
        return self.writer.finish(
            kind="table",
            classes=len(names or ()),
            origin=origin,
            class_names=names if names and names != [str(number) for number in range(len(names))] else [],
            columns=scale.columns(),
            targets=[Column(name=self.targets[0].name)] if label_scale is None else label_scale.columns(),
        )


def _classes_of(targets: Sequence[ColumnEncoder], options: PackOptions) -> list[str] | None:
    """Return the names of the classes, in their order; None if numbers are predicted."""
    first = targets[0]
    few = first.whole is not None and len(first.whole) <= FEW
    is_classes = options.task == "classes" or (options.task is None and (first.is_text or (few and len(targets) == 1)))
    if not is_classes:
        text = next((each for each in targets if each.is_text), None)
        if text is not None:
            raise DataError(
                f"column {text.name!r} has texts, of which no number can be predicted: expected --task classes"
            )
        return None
    if len(targets) > 1:
        raise DataError(f"{len(targets)} columns with classes are to be predicted: expected one --target")
    if not first.is_text and first.whole is None:
        raise DataError(f"column {first.name!r} has numbers with digits after the point: expected --task numbers")
    names = sorted(first.codes) if first.is_text else [str(int(number)) for number in sorted(first.whole or ())]
    if len(names) < 2:
        raise DataError(
            f"column {first.name!r} has one class only, {one_line(names[0], 60)!r}: expected at least two to tell apart"
        )
    return names


def _class_numbers(target: ColumnEncoder, labels: Floats) -> NDArray[np.int64]:
    """Return the numbers of classes, in the order of their names, (n,), of what was read, (n, 1)."""
    if target.is_text:
        return _ranks(target.codes)[labels[:, 0].astype(np.int64)]
    return np.searchsorted(np.array(sorted(target.whole or ())), labels[:, 0]).astype(np.int64)


def _ranks(codes: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the rank of each text among all of them in order, by its code, which counts them as they came."""
    ranks = {text: rank for rank, text in enumerate(sorted(codes))}
    return np.array([ranks[text] for text in codes], np.int64)


@dataclass
class _Scale:
    """What becomes of the values of each column."""

    encoders: Sequence[ColumnEncoder]
    mean: Floats
    std: Floats
    #: What stands for a missing value, before it is scaled; NaN if none may be missing.
    fill: Floats
    #: The ranks of texts by their codes, of columns that have texts.
    ranks: Mapping[int, NDArray[np.int64]]

    def apply(self, columns: Columns) -> NDArray[np.float32]:
        values = self.prepared(columns)
        values -= self.mean
        values /= self.std
        return values.astype(np.float32)

    def prepared(self, columns: Columns) -> Floats:
        """Return a copy of values with ranks for texts, and nothing missing."""
        values = columns.astype(np.float64)
        for number, ranks in self.ranks.items():
            values[:, number] = ranks[values[:, number].astype(np.int64)]
        if np.isfinite(self.fill).any():
            np.copyto(values, self.fill, where=np.isnan(values))
        return values

    def columns(self) -> list[Column]:
        """Return what a manifest says of the columns."""
        return [
            Column(
                name=encoder.name,
                categories=sorted(encoder.codes),
                mean=(encoder.offset or 0.0) + float(mean),
                std=float(std),
                missing=None if np.isnan(fill) else float(fill) + (encoder.offset or 0.0),
            )
            for encoder, mean, std, fill in zip(self.encoders, self.mean, self.std, self.fill, strict=True)
        ]


def _scale_of(
    blocks: Callable[[], Iterator[Columns]],
    encoders: Sequence[ColumnEncoder],
    options: PackOptions,
    missing: Missing | None,
) -> _Scale:
    """Return the scale of columns whose values in the training set `blocks` returns."""
    count = len(encoders)
    ranks = {number: _ranks(encoder.codes) for number, encoder in enumerate(encoders) if encoder.codes}
    scale = _Scale(encoders, np.zeros(count), np.ones(count), np.full(count, np.nan), ranks)
    if isinstance(missing, float):
        scale.fill = np.array([missing - (encoder.offset or 0.0) for encoder in encoders])
    elif missing == "mean":
        scale.fill = _means(map(scale.prepared, blocks()))
    if options.standardize:
        scale.mean, scale.std = _moments(map(scale.prepared, blocks()))
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
