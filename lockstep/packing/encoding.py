"""From the columns of a table to samples and labels: codes for texts, scaled numbers, classes by name.

What a column's mean is, and which texts it has, is known at the end only: so rows go to a scratch file first, and from
there, scaled, to the folder. Only the rows of the training set count for means.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.folder import Column
from lockstep.common.data.folder_writer import FolderWriter
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.division import Division, in_stretches
from lockstep.packing.options import PackOptions
from lockstep.packing.tables import TableBatch, TextValues

#: Most texts of a column that is learned from, and most classes.
MOST_CATEGORIES, MOST_CLASSES = 1000, 2**16
#: Whole numbers to predict are classes if they are no more than so many.
FEW = 100
#: Rows that are scaled at once.
BLOCK_ROWS = 2**13

Floats = NDArray[np.float64]


@dataclass
class ColumnEncoder:
    """One column on its way: what its texts are called, and what its numbers begin at."""

    name: str
    is_target: bool
    #: What is subtracted at once, so that a large number keeps its digits: the first one.
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
        return numbers

    def _coded(self, batch: TableBatch, values: TextValues, *, fills: bool) -> Floats:
        self.is_text = True
        is_missing = bool((values.places < 0).any())
        texts = [*values.texts, ""] if fills and is_missing else values.texts
        codes = [float(self.codes.setdefault(text, len(self.codes))) for text in texts]
        self._look_for_odd(batch, values)
        if len(self.codes) > (MOST_CLASSES if self.is_target else MOST_CATEGORIES):
            self._refuse(batch)
        # What is missing has the place -1, the last one.
        return np.array(codes if len(texts) > len(values.texts) else [*codes, np.nan], np.float64)[values.places]

    def _look_for_odd(self, batch: TableBatch, values: TextValues) -> None:
        """Record the first text that is not a number, since the others may be."""
        if self.odd is None:
            place = next((place for place, text in enumerate(values.texts) if not _is_number(text)), None)
            if place is not None:
                self.odd = (batch.row + int(np.argmax(values.places == place)), values.texts[place])

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
    """The rows of one set on their way: samples float32 (n, features), labels float64 (n, targets)."""

    samples: Path
    labels: Path
    features: int
    targets: int
    rows: int = 0
    _files: list[BinaryIO] = field(default_factory=list)

    def append(self, samples: NDArray[np.float32], labels: Floats) -> None:
        if not self._files:
            self._files = [self.samples.open("wb"), self.labels.open("wb")]
        self._files[0].write(np.ascontiguousarray(samples).data)
        self._files[1].write(np.ascontiguousarray(labels).data)
        self.rows += len(samples)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], Floats]]:
        """Return the rows again, in blocks that do not depend on how they came."""
        self.close()
        if not self.rows:
            return
        with self.samples.open("rb") as samples, self.labels.open("rb") as labels:
            for begin in range(0, self.rows, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, self.rows - begin)
                yield (
                    np.fromfile(samples, np.float32, rows * self.features).reshape(rows, self.features),
                    np.fromfile(labels, np.float64, rows * self.targets).reshape(rows, self.targets),
                )


@dataclass
class TableEncoder:
    """A table on its way into a folder."""

    writer: FolderWriter
    options: PackOptions
    features: Sequence[str]
    targets: Sequence[str]
    parts: dict[str, Scratch] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _encoders: list[ColumnEncoder] = field(init=False)
    #: Rows that were left out.
    dropped: int = 0

    def __post_init__(self) -> None:
        self._encoders = [ColumnEncoder(name, False) for name in self.features]
        self._encoders += [ColumnEncoder(name, True) for name in self.targets]
        for name in ("train", "test"):
            paths = self.writer.scratch(f"{name}-samples"), self.writer.scratch(f"{name}-labels")
            self.parts[name] = Scratch(*paths, len(self.features), len(self.targets))

    def read(self, name: str, batches: Iterator[TableBatch], division: Division | None) -> None:
        """Read a table into a set, or into both as it is divided."""
        for samples, labels in in_stretches(map(self._rows, batches)):
            if division is None:
                self.parts[name].append(samples, labels)
            else:
                marks = division.marks(len(labels))
                self.parts["train"].append(samples[~marks], labels[~marks])
                self.parts["test"].append(samples[marks], labels[marks])

    def _rows(self, batch: TableBatch) -> tuple[NDArray[np.float32], Floats]:
        samples = np.empty((batch.count, len(self.features)), np.float32)
        labels = np.empty((batch.count, len(self.targets)), np.float64)
        for number, encoder in enumerate(self._encoders):
            values = encoder.encode(batch, self.options)
            if encoder.is_target:
                labels[:, number - len(self.features)] = values
                continue
            if encoder.offset is None and batch.count:
                known = values[np.isfinite(values)][:1]
                is_shifted = self.options.standardize and not encoder.is_text
                encoder.offset = float(known[0]) if is_shifted and len(known) else 0.0 if len(known) else None
            with np.errstate(over="ignore"):
                np.subtract(values, encoder.offset or 0.0, out=samples[:, number], casting="same_kind")
        return self._without_missing(samples, labels) if self.options.missing == "drop" else (samples, labels)

    def _without_missing(self, samples: NDArray[np.float32], labels: Floats) -> tuple[NDArray[np.float32], Floats]:
        whole: NDArray[np.bool_] = np.asarray(np.isfinite(samples).all(axis=1) & np.isfinite(labels).all(axis=1))
        self.dropped += int(len(whole) - np.count_nonzero(whole))
        return samples[whole], labels[whole]

    def close(self) -> None:
        for part in self.parts.values():
            part.close()

    def finish(self) -> tuple[int, list[str], list[Column], list[Column]]:
        """Write both sets; return the number of classes, their names, and the columns of samples and labels."""
        features, targets = self._encoders[: len(self.features)], self._encoders[len(self.features) :]
        if not self.parts["train"].rows:
            raise DataError("no rows are left to learn from: expected some")
        if self.dropped:
            self.notes.append(f"{self.dropped:,} rows with a missing value were left out (--missing drop)")
        names = _classes_of(targets, self.options)
        scale = _scale_of(self.parts["train"], features, self.options)
        if names is not None:
            label_scale: _LabelScale | _ClassCodes = _ClassCodes(targets[0], names)
        else:
            label_scale = _LabelScale.of(self.parts["train"], targets, standardize=self.options.standardize)
        for name, part in self.parts.items():
            kind = np.dtype(np.int64 if names is not None else np.float32)
            shape = () if names is not None else (len(targets),)
            to = self.writer.open_part(name, np.dtype(np.float32), (len(features),), kind, shape)
            for samples, labels in part.blocks():
                to.append(scale.apply(samples), label_scale.apply(labels))
        columns = [scale.column(number, encoder) for number, encoder in enumerate(features)]
        if names is None:
            return 0, [], columns, label_scale.columns()
        plain = [str(number) for number in range(len(names))]
        self.notes.append(f"{one_line(targets[0].name, 60)!r} is predicted as one of {len(names)} classes (--task)")
        return len(names), [] if names == plain else names, columns, [Column(name=targets[0].name)]


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


@dataclass
class _ClassCodes:
    """Labels that become classes, in the order of their names."""

    encoder: ColumnEncoder
    names: list[str]
    _codes: Floats = field(init=False)

    def __post_init__(self) -> None:
        encoder = self.encoder
        # What each class was called by on its way, in the order of the names.
        given = (
            [encoder.codes[name] for name in self.names] if encoder.is_text else [float(name) for name in self.names]
        )
        self._order = np.argsort(np.array(given))
        self._codes = np.array(given, np.float64)[self._order]

    def apply(self, labels: Floats) -> NDArray[np.int64]:
        return self._order[np.searchsorted(self._codes, labels[:, 0])].astype(np.int64)

    def columns(self) -> list[Column]:
        return [Column(name=self.encoder.name)]


@dataclass
class _LabelScale:
    """Labels that become numbers of mean 0 and deviation 1."""

    names: list[str]
    mean: Floats
    std: Floats

    @classmethod
    def of(cls, train: Scratch, targets: Sequence[ColumnEncoder], *, standardize: bool) -> "_LabelScale":
        names, count = [each.name for each in targets], train.targets
        if not standardize:
            return cls(names, np.zeros(count), np.ones(count))
        mean, std = _moments(labels for _, labels in train.blocks())
        return cls(names, mean, std)

    def apply(self, labels: Floats) -> NDArray[np.float32]:
        return ((labels - self.mean) / self.std).astype(np.float32)

    def columns(self) -> list[Column]:
        return [
            Column(name=name, mean=float(mean), std=float(std))
            for name, mean, std in zip(self.names, self.mean, self.std, strict=True)
        ]


@dataclass
class _Scale:
    """What becomes of the values of each column of samples."""

    mean: Floats
    std: Floats
    #: What stands for a missing value, before it is scaled; NaN if none may be missing.
    fill: Floats
    #: The codes of texts in their order, by the codes that they were given on the way.
    recoded: dict[int, Floats]

    def apply(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        values = self.prepared(samples)
        values -= self.mean
        values /= self.std
        return values.astype(np.float32)

    def prepared(self, samples: NDArray[np.float32]) -> Floats:
        """Return samples with codes in their order, and nothing missing."""
        values = samples.astype(np.float64)
        for number, codes in self.recoded.items():
            values[:, number] = codes[values[:, number].astype(np.int64)]
        if np.isfinite(self.fill).any():
            np.copyto(values, self.fill, where=np.isnan(values))
        return values

    def column(self, number: int, encoder: ColumnEncoder) -> Column:
        offset = encoder.offset or 0.0
        fill = float(self.fill[number])
        return Column(
            name=encoder.name,
            categories=sorted(encoder.codes),
            mean=offset + float(self.mean[number]),
            std=float(self.std[number]),
            missing=None if np.isnan(fill) else fill + offset,
        )


def _scale_of(train: Scratch, features: Sequence[ColumnEncoder], options: PackOptions) -> _Scale:
    count = len(features)
    recoded = {
        number: np.argsort(np.argsort(np.array(list(encoder.codes)))).astype(np.float64)
        for number, encoder in enumerate(features)
        if encoder.is_text and encoder.codes
    }
    scale = _Scale(np.zeros(count), np.ones(count), np.full(count, np.nan), recoded)
    if isinstance(options.missing, float):
        scale.fill = np.array([options.missing - (encoder.offset or 0.0) for encoder in features])
    elif options.missing == "mean":
        scale.fill = _means(train, scale)
    if options.standardize:
        scale.mean, scale.std = _moments(scale.prepared(samples) for samples, _ in train.blocks())
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


def _means(train: Scratch, scale: _Scale) -> Floats:
    """Return the mean of each column over what is not missing."""
    total: Any = 0.0
    count: Any = 0
    for samples, _ in train.blocks():
        values = scale.prepared(samples)
        known = ~np.isnan(values)
        total, count = total + np.where(known, values, 0.0).sum(axis=0), count + known.sum(axis=0)
    return np.asarray(total / np.maximum(1, count))
