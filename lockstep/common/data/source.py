"""Finds a dataset by the name that a job gives it, names the fault of one that cannot be used, and splits it."""

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.data.array_files import open_npz
from lockstep.common.data.array_source import as_labels, as_samples, open_arrays
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import MANIFEST, load_folder
from lockstep.common.data.mapped import MappedSamples
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.records import as_input, as_records, labels_with, parts_of
from lockstep.common.errors import DataError
from lockstep.common.files.reading import near_file
from lockstep.common.numerics.random import Purpose, generator

#: Arrays by name, and the samples and labels of a set.
Arrays = dict[str, NDArray[Any]]
Pair = tuple[NDArray[Any], NDArray[Any]]

#: The sets of an .npz file.
PARTS = ("train", "test")

#: Bytes at most of an array that is kept: more would delay the start of the processes that are to have it.
MOST_KEPT = 2**28

#: By where they are, the datasets that `keep_loaded` has read.
_KEPT: dict[str, TrainTest] = {}


def load(spec: str, *, is_checked: bool = False) -> TrainTest:
    """Return the dataset called `spec`, with the parts `train` and `test`.

    Each part has `images`, which are samples of any kind, and `labels`:

    - `images`: uint8 or float32, `(n, channels, height, width)` or `(n, features)`; or tokens, int32 `(n, t)`;
    - `labels`: classes from 0, int64 `(n,)`, of tokens also `(n, t)`; or, for a regression, float32 `(n, k)`.

    `spec` is one of these:

    - `"mnist"`, which is part of the package;
    - a folder with the four IDX files of MNIST, gzipped or not;
    - an `.npz` file with the arrays `x_train`, `y_train`, `x_test` and `y_test`, where gray images may be `(n, h, w)`;
      samples of several arrays are `x_train.NAME`, …, numbered from 0 if they have no names, and `w_train` and `w_test`
      are weights of samples;
    - a folder that `lockstep pack` made. It stays on disk and is read when it is needed; with `is_checked=True`, each
      block is compared with its digest before it is used.

    Raises `DataError` with the file, the value that cannot be used, and the expected ones.

        >>> from lockstep import load
        >>> mnist = load("mnist")
        >>> mnist.train.images.shape, mnist.train.images.dtype
        ((60000, 1, 28, 28), dtype('uint8'))
        >>> mnist.test.labels[:5]
        array([7, 2, 1, 0, 4])
    """
    source = _array_source(spec)
    if source is not None:
        return _KEPT.get(_whereabouts(source[0])) or _loaded(*source)
    path = _path_of(spec)
    if spec and (path / MANIFEST).is_file():
        return load_folder(path, is_checked=is_checked)
    if path.exists() and path.suffix:
        command = f"lockstep pack {shlex.quote(spec)} {shlex.quote(path.stem)}.data"
        needs = "which tells what it needs; only `train`, `find-lr`, `doctor` and `fit` take tables themselves"
        if path.suffix == ".npy":
            command, needs = (
                f"{command} --labels LABELS.npy",
                "where LABELS.npy has a label or a number for each sample",
            )
        raise DataError(f"{spec}: is not a packed dataset: pack it first, with `{command}`, {needs}")
    raise DataError(
        f"no dataset {spec!r}{near_file(path)}: expected 'mnist', a folder from `lockstep pack` or with the four IDX "
        "files of MNIST, an .npz file with x_train, y_train, x_test, y_test or, for `train` and `fit`, a .csv, a "
        ".parquet or a folder of pictures"
    )


def keep_loaded(spec: str) -> None:
    """Read the arrays of a dataset into memory, for this process and those that are forked from it.

    Packed folders, larger arrays and samples of several arrays are left to the processes that need them, and so is what
    cannot be read: they raise the error.
    """
    source = _array_source(spec)
    if source is not None:
        with suppress(DataError):
            with open_arrays(source[0], most_bytes=MOST_KEPT):
                pass  # it looks at the sizes alone
            data = _loaded(*source)
            _ = data.digest  # which each of them compares
            _KEPT[_whereabouts(source[0])] = data


def _whereabouts(source: str) -> str:
    """Return where a source is, from any folder."""
    return source if source == "mnist" else os.path.abspath(source)


def _path_of(spec: str) -> Path:
    # Job files may say "~"; pathlib's own expansion raises if there is no such user.
    return Path(os.path.expanduser(spec))


def _array_source(spec: str) -> tuple[str, str] | None:
    """Return where the arrays of a dataset are that is read into memory, and its name; None if it is none such."""
    if spec == "mnist":
        return spec, spec
    path = _path_of(spec)
    if spec and path.is_dir() and not (path / MANIFEST).is_file():
        return str(path), path.resolve().name
    return (str(path), path.stem) if path.suffix == ".npz" and not path.is_dir() else None


def _loaded(source: str, name: str) -> TrainTest:
    """Return the arrays of a source, which are read into memory."""
    records = record_parts(source) if source.endswith(".npz") else None
    pairs, classes = _plain_pairs(source) if records is None else ([], 0)
    try:
        if records is not None:
            pairs = [_record_pair(part, arrays) for part, arrays in zip(PARTS, records, strict=True)]
        values = [parts_of(labels)[0] for _, labels in pairs]
        if not classes and all(each.dtype == np.int64 for each in values):
            classes = 1 + max(int(each.max(initial=0)) for each in values)
        train, test = (_dataset(part, *pair, classes) for part, pair in zip(PARTS, pairs, strict=True))
        return TrainTest(name, train, test)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def _plain_pairs(source: str) -> tuple[list[Pair], int]:
    """Return samples and labels of both sets, which are one array each, and the classes if the source implies them."""
    with open_arrays(source) as opened:
        if opened.test is None:
            raise DataError(
                f"{source}: has no test set: expected x_test and y_test next to x_train and y_train; to draw one, run "
                f"`lockstep pack {shlex.quote(source)} {shlex.quote(Path(source).stem + '.data')}` and use that folder"
            )
        return [opened.train.read_whole(), opened.test.read_whole()], opened.classes


def record_parts(source: str) -> tuple[Arrays, Arrays] | None:
    """Return the arrays of both sets of an .npz file, if samples or labels are several; None if they are plain."""
    with open_npz(Path(source)) as archive:
        names = archive.names()
        plain = {f"{kind}_{part}" for kind in "xy" for part in ("train", "test")}
        own = [name for name in names if name.partition(".")[0] in plain | {"w_train", "w_test"}]
        if set(own) <= plain:
            return None
        found = {name: archive.array(name).read_whole() for name in sorted(own, key=_place)}
    train, test = ({name: array for name, array in found.items() if part in name.partition(".")[0]} for part in PARTS)
    return train, test


def _place(name: str) -> tuple[str, int, str]:
    """Return where an array is to be among others: numbers in their order, names in that of the alphabet."""
    array, _, field = name.partition(".")
    return array, int(field) if field.isdigit() else 0, field


def _record_pair(part: str, arrays: Arrays) -> Pair:
    """Return the samples and labels of a set with several arrays."""
    inputs, targets = (_fields(f"{kind}_{part}", arrays) for kind in "xy")
    for kind, found in (("x", inputs), ("y", targets)):
        if not found:
            raise DataError(f"no array '{kind}_{part}': expected it next to the others")
        if "" in found and len(found) > 1:
            both = f"'{kind}_{part}' and '{kind}_{part}.{[*found][-1]}'"
            raise DataError(f"both {both}: expected one array, or several that each have a name")
    samples = (
        as_samples(f"'x_{part}'", inputs[""])
        if list(inputs) == [""]
        else as_records({field: as_input(f"'x_{part}.{field}'", array) for field, array in inputs.items()})
    )
    labels = {field: as_labels(f"'y_{part}'", array) for field, array in targets.items()}
    return samples, labels_with(labels, arrays.get(f"w_{part}"))


def _fields(array: str, arrays: Arrays) -> Arrays:
    """Return the fields of an array by name, itself by the empty name."""
    return {name.partition(".")[2]: values for name, values in arrays.items() if name.partition(".")[0] == array}


def _dataset(named: str, images: NDArray[Any], labels: NDArray[Any], classes: int) -> Dataset:
    try:
        return Dataset(images, labels, classes)
    except DataError as error:
        raise DataError(f"{named}: {error}") from None


def with_validation(data: TrainTest, share: float, seed: int) -> TrainTest:
    """Return the data with that share of the training samples, drawn by the seed, as its validation set.

    To stop a run at its best test figure is to fit the test set, with a figure that new data will not
    give (Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 7.2): choose by the validation set. The
    rest keeps its order. With a share of 0, or if the data has a validation set, the data itself is returned. Raises
    DataError if one of the two sets would be empty.
    """
    if not share or data.validation is not None:
        return data
    size = len(data.train)
    kept_out = int(share * size)
    if not 0 < kept_out < size:
        raise DataError(
            f"validation_split = {share!r} of {size} training samples is {kept_out}: expected at least one, and at "
            "least one left to train on"
        )
    drawn = generator(seed, Purpose.VALIDATE).permutation(size)
    return replace(
        data,
        train=_subset(data.train, np.sort(drawn[kept_out:])),
        validation=_subset(data.train, np.sort(drawn[:kept_out])),
    )


def _subset(data: Dataset, rows: NDArray[np.int64]) -> Dataset:
    images, labels = data.images, data.labels.take(rows, axis=0)
    chosen = images.subset(rows) if isinstance(images, MappedSamples) else images.take(rows, axis=0)
    return Dataset(chosen, labels, data.classes, is_checked=True, known_largest=data.known_largest)


def with_moments(data: TrainTest) -> TrainTest:
    """Return the data with the moments of its training set, which are then computed once, and not by each worker.

    Those of a packed dataset are known; of what a validation set leaves of it they are computed here. Those of samples
    of several arrays are not kept, and tokens have none.
    """
    train = data.train
    if train.images.dtype.names or train.is_tokens or train.moments is not None:
        return data
    preparation = Preparation.of(train)
    return data.with_moments((preparation.mean, preparation.std))
