"""Finds the training set and the test set in files of arrays, and turns arrays into samples and labels."""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.array_files import ArrayReader, open_idx, open_npy, open_npz
from lockstep.common.data.npy import MAX_BYTES
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line

#: Bytes of samples that are read at once.
BATCH_BYTES = 2**23

#: MNIST has ten classes, and so have the datasets that share its file names (Fashion-MNIST, KMNIST).
IDX_CLASSES = 10

IDX_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
IDX_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

#: The arrays of a training set, and of a test set, in an .npz or as .npy files of a folder.
TRAIN, TEST = ("x_train", "y_train"), ("x_test", "y_test")

#: Arrays without a test set; a part of them is drawn as one.
UNDIVIDED = ("x", "y")

#: Weights of samples, and how arrays are called if a sample has several: only an .npz that is read whole may have them.
WEIGHTS = ("w_train", "w_test", "w")
SEVERAL = tuple(f"{name}." for name in (*TRAIN, *TEST, *UNDIVIDED))


@dataclass
class ArraySet:
    """One set: samples with their labels."""

    samples: ArrayReader
    labels: ArrayReader

    def __post_init__(self) -> None:
        for reader in (self.samples, self.labels):
            if not reader.header.shape:
                raise DataError(f"{reader.named} is a single number: expected an array of samples")
            if len(reader.header.shape) > 1 and not math.prod(reader.header.shape[1:]):
                raise DataError(
                    f"{reader.named} is of shape {reader.header.shape}: expected at least one value for each sample"
                )
        if len(self) != self.labels.header.shape[0]:
            labels = self.labels.header.shape[0]
            raise DataError(f"{self.labels.named}: {labels} labels for {len(self)} samples: expected one each")

    def __len__(self) -> int:
        return self.samples.header.shape[0]

    @property
    def has_real_labels(self) -> bool:
        """True if labels are real numbers, and not classes."""
        return self.labels.header.dtype.kind == "f"

    def read_whole(self) -> tuple[NDArray[Any], NDArray[Any]]:
        samples = as_samples(self.samples.named, self.samples.read_whole())
        return samples, as_labels(self.labels.named, self.labels.read_whole())

    def batches(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Return samples and labels as they are stored in a folder, some at a time."""
        for reader in (self.samples, self.labels):
            if reader.header.is_fortran and len(reader.header.shape) > 1:
                raise DataError(f"{reader.named} is in Fortran order: save numpy.ascontiguousarray of it")
        rows = rows_of(self.samples, BATCH_BYTES)
        for first in range(0, len(self), rows):
            samples = as_samples(self.samples.named, self.samples.read(rows))
            labels = as_labels(self.labels.named, self.labels.read(rows))
            _check_finite(self.samples.named, samples, first)
            _check_finite(self.labels.named, labels, first)
            if labels.dtype == np.int64 and int(labels.min()) < 0:
                row = first + int(np.argwhere(labels < 0)[0, 0])
                raise DataError(f"{self.labels.named}: label {int(labels.min())} in row {row}: expected classes from 0")
            yield samples, labels
        self.samples.check_end()
        self.labels.check_end()


def rows_of(reader: ArrayReader, most_bytes: int) -> int:
    """Return how many rows of an array have at most so many bytes, at least one."""
    return max(1, most_bytes // max(1, reader.header.data_bytes // max(1, reader.header.shape[0])))


def _check_finite(named: str, rows: NDArray[Any], first: int) -> None:
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        row, *rest = np.argwhere(~np.isfinite(rows))[0].tolist()
        place = f", at {tuple(rest)}" if rest else ""
        expected = "expected no NaN or infinity, and nothing that float32 does not hold"
        raise DataError(f"{named}: row {first + row}{place} is not a finite number: {expected}")


class ArraySource(msgspec.Struct, frozen=True):
    """The sets of a source of arrays; no test set if it has none."""

    train: ArraySet
    test: ArraySet | None
    #: The number of classes, if the source implies it.
    classes: int = 0

    def __post_init__(self) -> None:
        if self.test is not None and self.train.has_real_labels != self.test.has_real_labels:
            kinds = ("integers", "real numbers")
            raise DataError(
                f"{self.train.labels.named} has {kinds[self.train.has_real_labels]}, and the test set "
                f"{kinds[self.test.has_real_labels]}: expected one kind in both"
            )


@contextmanager
def open_arrays(source: str, labels: Path | None = None, most_bytes: int = MAX_BYTES) -> Iterator[ArraySource]:
    """Open a source of arrays, none larger than `most_bytes`; DataError if one cannot be read or does not fit.

    `labels` is the file of labels if the source is an .npy file of samples.
    """
    with ExitStack() as stack:
        path, opener = Path(source), _Opener(stack, most_bytes)
        if source == "mnist":
            yield opener.idx_folder(stack.enter_context(as_file(files("lockstep.common.data") / "mnist")))
        elif path.suffix == ".npz":
            yield opener.npz(path)
        elif path.suffix == ".npy":
            if labels is None:
                raise DataError(f"{path}: has samples alone: expected --labels FILE.npy with a label for each")
            yield ArraySource(opener.npy_set(path, labels), None)
        elif (path / f"{TRAIN[0]}.npy").is_file():
            _check_plain(path, (each.stem for each in path.glob("*.npy")))
            train, test = ([path / f"{name}.npy" for name in names] for names in (TRAIN, TEST))
            yield ArraySource(opener.npy_set(*train), opener.npy_set(*test) if test[0].is_file() else None)
        else:
            yield opener.idx_folder(path)


def is_array_source(source: str) -> bool:
    path = Path(source)
    is_idx = any((path / name).is_file() or (path / f"{name}.gz").is_file() for name in IDX_TRAIN)
    return source == "mnist" or path.suffix in (".npz", ".npy") or (path / f"{TRAIN[0]}.npy").is_file() or is_idx


def unknown_folder(folder: Path) -> DataError:
    """Return the error for a folder that is of no kind that is known, with its contents."""
    names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    shown = ", ".join(one_line(name, 40) for name in names[:3]) or "nothing"
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return DataError(
        f"{one_line(str(folder))}: is a folder with {shown}{more}: expected a folder inside it for the pictures of "
        "each class, files of a table, the four IDX files of MNIST, or a folder from `lockstep pack`"
    )


def _check_plain(path: Path, names: Iterable[str]) -> None:
    """Raise `DataError` if there are weights of samples, or several inputs or targets: none of them may be dropped."""
    given = set(names)
    odd = sorted(name for name in given if name in WEIGHTS or name.startswith(SEVERAL))
    if not odd:
        return
    if path.suffix == ".npz" and not ("_" in odd[0] and any(name.startswith(TEST[0]) for name in given)):
        raise DataError(
            f"{path}: has {odd[0]!r}, and samples with weights, or with several inputs or targets, are not divided: "
            "expected a test set next to them, as x_train, y_train, w_train, x_test, y_test, w_test (or x_train.NAME)"
        )
    advice = f"train on the file itself: lockstep train --data {path}" if path.suffix == ".npz" else "remove it"
    raise DataError(
        f"{path}: has {odd[0]!r}, and weights of samples, or several inputs or targets, cannot be packed: expected "
        f"x_train, y_train, x_test and y_test alone; {advice}"
    )


@dataclass
class _Opener:
    """Opens files for as long as the stack is."""

    stack: ExitStack
    most_bytes: int

    def npz(self, path: Path) -> ArraySource:
        archive = self.stack.enter_context(open_npz(path, self.most_bytes))
        names = archive.names()
        _check_plain(path, names)
        train = TRAIN if TRAIN[0] in names or "x" not in names else UNDIVIDED
        test = ArraySet(*map(archive.array, TEST)) if names.intersection(TEST) else None
        return ArraySource(ArraySet(*map(archive.array, train)), test)

    def npy_set(self, *paths: Path) -> ArraySet:
        samples, labels = (self.stack.enter_context(open_npy(path, self.most_bytes)) for path in paths)
        return ArraySet(samples, labels)

    def idx_folder(self, folder: Path) -> ArraySource:
        if folder.is_dir() and not is_array_source(str(folder)):
            raise unknown_folder(folder)
        train, test = (
            ArraySet(self._idx(folder / samples, 3), self._idx(folder / labels, 1))
            for samples, labels in (IDX_TRAIN, IDX_TEST)
        )
        return ArraySource(train, test, IDX_CLASSES)

    def _idx(self, path: Path, dimensions: int) -> ArrayReader:
        found = next((each for each in (path, path.with_name(f"{path.name}.gz")) if each.is_file()), None)
        if found is None:
            raise DataError(f"{path}: missing: expected this IDX file, or the same with .gz; copy it there")
        return self.stack.enter_context(open_idx(found, dimensions, self.most_bytes))


def as_samples(named: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return integers in rows, but for bytes, which are images that were flattened, as tokens; others as images."""
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.dtype == np.uint8:
        images = _as_images(array)
        if images.dtype not in (np.uint8, np.float32):
            raise DataError(f"{named} is of dtype {str(array.dtype)!r}: expected uint8 or floats")
        return images
    # Before the cast, which would wrap.
    if array.size and not 0 <= int(array.min()) <= int(array.max()) <= np.iinfo(np.int32).max:
        ends = f"{int(array.min())!r} to {int(array.max())!r}"
        raise DataError(f"{named} has tokens from {ends}: expected integers from 0")
    return np.ascontiguousarray(array, dtype=np.int32)


def _as_images(array: NDArray[Any]) -> NDArray[Any]:
    """Return gray images (n, h, w) with the channel they lack; floats of any width and booleans as float32."""
    images = array[:, np.newaxis] if array.ndim == 3 else array
    if images.dtype.kind in "fb":
        # A value beyond float32 becomes an infinity, which the Dataset refuses by name: no warning is needed.
        with np.errstate(over="ignore"):
            images = images.astype(np.float32)
    return np.ascontiguousarray(images)


def as_labels(named: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return classes as int64, of any shape, and real numbers as float32, one row per sample."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # as in `_as_images`
            targets = array.astype(np.float32)
        return targets[:, np.newaxis] if targets.ndim == 1 else targets
    if array.dtype.kind not in "iu":
        raise DataError(f"{named} is of dtype {str(array.dtype)!r}: expected integers (.astype(numpy.int64)) or floats")
    # Before the cast, which would wrap: the largest uint64 becomes -1.
    if array.size and int(array.max()) > np.iinfo(np.int32).max:
        raise DataError(f"{named} has the label {int(array.max())!r}: expected the classes, counted from 0")
    return array.astype(np.int64)
