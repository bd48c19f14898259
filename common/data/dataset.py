"""What a dataset is: samples with their labels, checked once; it knows nothing of files, order or normalisation."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and their classes. Raises DataError where the fields do not fit together."""

    #: uint8 or float32, (n, channels, height, width) or (n, features); n ≥ 1, all finite.
    images: NDArray[Any]
    #: int64, (n,), each in [0, classes).
    labels: NDArray[np.int64]
    classes: int

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_labels(self.labels, self.classes)
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images and {len(self.labels)} labels: expected one label an image")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (channels, height, width) or (features,)."""
        return self.images.shape[1:]


@dataclass(frozen=True, eq=False)
class TrainTest:
    """A training set and the test set that belongs to it. Raises DataError where they are of different kinds."""

    name: str
    train: Dataset
    test: Dataset

    def __post_init__(self) -> None:
        if self.train.sample_shape != self.test.sample_shape:
            raise DataError(
                f"test images of shape {self.test.sample_shape!r}: expected {self.train.sample_shape!r}, as in training"
            )
        if self.train.classes != self.test.classes:
            raise DataError(f"{self.test.classes!r} classes in the test set: expected {self.train.classes!r}")

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, over shapes, dtypes and bytes: equal wherever a run would be."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            for array in (part.images, part.labels):
                digest.update(f"{array.dtype.str} {array.shape} {part.classes};".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _check_images(images: NDArray[Any]) -> None:
    if images.dtype not in (np.uint8, np.float32):
        raise DataError(f"images of dtype {str(images.dtype)!r}: expected uint8 or float32")
    if images.ndim not in (2, 4) or 0 in images.shape:
        raise DataError(
            f"images of shape {images.shape!r}: expected (n, channels, height, width) or (n, features), none of them 0"
        )
    if images.dtype == np.float32 and not np.isfinite(images).all():
        raise DataError(f"image {_first(~np.isfinite(images))} holds an infinity or NaN: expected finite numbers")


def _check_labels(labels: NDArray[np.int64], classes: int) -> None:
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise DataError(f"labels of dtype {str(labels.dtype)!r} and shape {labels.shape!r}: expected int64 and (n,)")
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        index = _first(outside)
        raise DataError(f"label {int(labels[index])!r} at index {index}: expected an integer in [0, {classes})")


def _first(marked: NDArray[np.bool_]) -> int:
    """Return the first index whose entry has a mark."""
    return int(np.argwhere(marked)[0, 0])
