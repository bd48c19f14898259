"""Finds a dataset by the name that a job gives it, names what is wrong with one that cannot be used, and splits it."""

import os
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import MANIFEST, load_folder
from lockstep.common.data.formats.idx import read_idx
from lockstep.common.data.formats.npz import read_npz
from lockstep.common.data.mapped import MappedSamples
from lockstep.common.data.preparation import Preparation
from lockstep.common.errors import DataError
from lockstep.common.random import Purpose, generator

#: MNIST has ten classes, and so have the datasets that share its file names (Fashion-MNIST, KMNIST).
IDX_CLASSES = 10

IDX_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
IDX_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load(spec: str, *, is_checked: bool = False) -> TrainTest:
    """Return the dataset called `spec`, with the parts `train` and `test`.

    Each part has `images`, which are samples of any kind, and `labels`:

    - `images`: uint8 or float32, `(n, channels, height, width)` or `(n, features)`; or tokens, int32 `(n, t)`;
    - `labels`: classes from 0, int64 `(n,)`, of tokens also `(n, t)`; or, for a regression, float32 `(n, k)`.

    `spec` is one of these:

    - `"mnist"`, which is part of the package;
    - a folder with the four IDX files of MNIST, gzipped or not;
    - an `.npz` file with the arrays `x_train`, `y_train`, `x_test` and `y_test`, where gray images may be `(n, h, w)`;
    - a folder that `lockstep pack` made. It stays on disk and is read when it is needed; with `is_checked=True`, each
      block is compared with its digest before it is used.

    Raises `DataError` with the file, the value that cannot be used, and what was expected.

        >>> from lockstep import load
        >>> mnist = load("mnist")
        >>> mnist.train.images.shape, mnist.train.images.dtype
        ((60000, 1, 28, 28), dtype('uint8'))
        >>> mnist.test.labels[:5]
        array([7, 2, 1, 0, 4])
    """
    if spec == "mnist":
        with as_file(files("lockstep.common.data") / "mnist") as folder:
            return _from_folder(folder, name="mnist")
    # Job files may say "~"; pathlib's own expansion raises if there is no such user.
    path = Path(os.path.expanduser(spec))
    if spec and (path / MANIFEST).is_file():
        return load_folder(path, is_checked=is_checked)
    if spec and path.is_dir():
        return _from_folder(path, name=path.resolve().name)
    if path.suffix == ".npz":
        return _from_npz(path)
    raise DataError(
        f"no dataset {spec!r}: expected 'mnist', a folder from `lockstep pack` or with the four IDX files of MNIST, "
        "an .npz file with x_train, y_train, x_test, y_test or, for `train` and `fit`, a .csv, a .parquet or a folder "
        "of pictures"
    )


def _from_folder(folder: Path, name: str) -> TrainTest:
    train, test = (_read_pair(folder, *names) for names in (IDX_TRAIN, IDX_TEST))
    return _paired(folder, name, train, test)


def _read_pair(folder: Path, images_name: str, labels_name: str) -> Dataset:
    images_path, labels_path = _find(folder, images_name), _find(folder, labels_name)
    images = read_idx(images_path, dimensions=3)
    labels = read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels)} labels: expected {len(images)}, as many as images in {images_path.name}"
        )
    return _dataset(str(labels_path), _as_images(images), labels.astype(np.int64), IDX_CLASSES)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name}: missing: expected this IDX file, or the same with .gz; copy it there")


def _from_npz(path: Path) -> TrainTest:
    arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test"))
    labels = {name: as_labels(f"{path}: {name!r}", arrays[name]) for name in ("y_train", "y_test")}
    if labels["y_train"].dtype != labels["y_test"].dtype:
        of = {name: "real numbers" if part.dtype == np.float32 else "integers" for name, part in labels.items()}
        raise DataError(f"{path}: 'y_train' has {of['y_train']} and 'y_test' {of['y_test']}: expected one kind in both")
    is_real = labels["y_train"].dtype == np.float32
    classes = 0 if is_real else 1 + max(int(part.max(initial=0)) for part in labels.values())
    train, test = (
        _dataset(
            f"{path}: {part}", as_samples(f"{path}: 'x_{part}'", arrays[f"x_{part}"]), labels[f"y_{part}"], classes
        )
        for part in ("train", "test")
    )
    return _paired(path, path.stem, train, test)


def as_samples(named: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return integers in rows, but for bytes, which are images that were flattened, as tokens; others as images."""
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.dtype == np.uint8:
        return _as_images(array)
    # Before the cast, which would wrap.
    if array.size and not 0 <= int(array.min()) <= int(array.max()) <= np.iinfo(np.int32).max:
        ends = f"{int(array.min())!r} to {int(array.max())!r}"
        raise DataError(f"{named} has tokens from {ends}: expected integers from 0")
    return np.ascontiguousarray(array, dtype=np.int32)


def _as_images(array: NDArray[Any]) -> NDArray[Any]:
    """Return gray images (n, h, w) with the channel they lack, floats of any width as float32, others as they are."""
    images = array[:, np.newaxis] if array.ndim == 3 else array
    if images.dtype.kind == "f":
        # What a float32 cannot hold becomes an infinity, which the Dataset refuses by name: no warning is needed.
        with np.errstate(over="ignore"):
            images = images.astype(np.float32)
    return np.ascontiguousarray(images)


def as_labels(named: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return classes as int64, of any shape, and real numbers as float32, one row a sample."""
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


def _dataset(named: str, images: NDArray[Any], labels: NDArray[Any], classes: int) -> Dataset:
    try:
        return Dataset(images, labels, classes)
    except DataError as error:
        raise DataError(f"{named}: {error}") from None


def _paired(path: Path, name: str, train: Dataset, test: Dataset) -> TrainTest:
    try:
        return TrainTest(name, train, test)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def with_validation(data: TrainTest, share: float, seed: int) -> TrainTest:
    """Return the data with that share of the training samples, drawn by the seed, as its validation set.

    Whoever stops a run at its best test figure has fitted the test set, and reports a figure that new data will not
    give (Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 7.2): choose by the validation set. What
    stays keeps its order. With a share of 0, or if the data has a validation set, the data itself is returned. Raises
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
    labels = data.labels.take(rows, axis=0)
    if isinstance(data.images, MappedSamples):
        chosen, largest = data.images.subset(rows), data.known_largest
        return Dataset(chosen, labels, data.classes, is_checked=True, known_largest=largest)
    return Dataset(data.images.take(rows, axis=0), labels, data.classes, is_checked=True)


def with_moments(data: TrainTest) -> TrainTest:
    """Return the data with the moments of its training set if that is read from a disk: once, and not by each worker.

    Those of a packed dataset are known; of what a validation set leaves of it they are computed here.
    """
    train = data.train
    if not isinstance(train.images, MappedSamples) or train.moments is not None:
        return data
    preparation = Preparation.of(train)
    return replace(data, train=replace(train, moments=(preparation.mean, preparation.std)))
