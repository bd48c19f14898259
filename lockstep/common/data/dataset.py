"""Datasets: samples with their labels, checked once; it knows nothing of files, order or normalisation."""

import hashlib
import math
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.data.mapped import Samples
from lockstep.common.data.records import WEIGHT, parts_of
from lockstep.common.errors import DataError


class Dataset(msgspec.Struct, frozen=True, eq=False):
    """Samples and their labels. Raises DataError if the fields do not fit together."""

    #: uint8 or float32, (n, channels, height, width) or (n, features); or tokens, int32
    #: (n, t) from 0. n ≥ 1, all finite. Or records, (n,), of several such arrays by their names.
    images: Samples
    #: Classes, int64 below `classes`: one per sample, (n,), one per token, (n, t), or one per pixel, (n, h, w). Or
    #: numbers, float32 (n, targets) or (n, …). Or records, (n,), of such, and of the samples' weights, float32 ≥ 0.
    labels: NDArray[Any]
    #: 0 if labels are real numbers.
    classes: int
    #: Whether all values were looked at before, as when a set is packed: then they are not read for that again.
    is_checked: bool = False
    #: Mean and deviation of the samples, as `Preparation` has them, if these are known without looking.
    moments: tuple[float, float] | None = None
    #: The same of the largest value of the samples.
    known_largest: float | None = None

    def __post_init__(self) -> None:
        _check_kind(self.images)
        _check_label_kind(self.labels, self.classes)
        if not self.is_checked:
            _check_images(self.images[:])
            _check_labels(self.labels, self.classes)
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images and {len(self.labels)} labels: expected one label per image")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (channels, height, width) or (features,)."""
        return self.images.shape[1:]

    def largest(self) -> float:
        """Return the largest value of the samples, as it is stored."""
        return float(self.images[:].max()) if self.known_largest is None else self.known_largest

    @property
    def is_tokens(self) -> bool:
        """True if samples are sequences of tokens, which are not to be scaled."""
        return self.images.dtype == np.int32

    @property
    def values(self) -> NDArray[Any]:
        """The labels without weights; records if a sample has several targets."""
        return parts_of(self.labels)[0]

    @property
    def weights(self) -> NDArray[Any] | None:
        """The weight of each sample, (n,); None if each weighs 1."""
        return parts_of(self.labels)[1]

    @property
    def targets(self) -> int:
        """The number of classes or real numbers to predict for one sample, 1 if it has several kinds of them."""
        return math.prod(self.values.shape[1:])


class TrainTest(msgspec.Struct, frozen=True, eq=False, dict=True):
    """A training set and the test set that belongs to it. Raises DataError if they are of different kinds."""

    name: str
    train: Dataset
    test: Dataset
    #: The part of the training set to choose by, if it was divided.
    validation: Dataset | None = None
    #: The names of the classes, in order; empty if they have none.
    class_names: tuple[str, ...] = ()
    #: The digest if it is known without reading the data.
    known_digest: str | None = None

    def __post_init__(self) -> None:
        if self.train.images.dtype.names != self.test.images.dtype.names:
            raise DataError(
                f"test samples have {self.test.images.dtype.names or 'one array'!r}: expected "
                f"{self.train.images.dtype.names or 'one array'!r}, as in training"
            )
        for name in self.train.images.dtype.names or ():
            one, other = self.train.images.dtype[name], self.test.images.dtype[name]
            if one.shape != other.shape or (one.base == np.int32) != (other.base == np.int32):
                raise DataError(
                    f"the input {name!r} of test samples is of shape {other.shape!r} and dtype {str(other.base)!r}: "
                    f"expected {one.shape!r} and {str(one.base)!r}, as in training"
                )
        # A test set may do without the weights of samples.
        trained, tested = (
            tuple(name for name in part.values.dtype.names or () if name != WEIGHT) for part in (self.train, self.test)
        )
        if trained != tested:
            raise DataError(
                f"test labels have {tested or 'one array'!r}: expected {trained or 'one array'!r}, as in training"
            )
        if self.train.sample_shape != self.test.sample_shape:
            raise DataError(
                f"test images of shape {self.test.sample_shape!r}: expected {self.train.sample_shape!r}, as in training"
            )
        if self.train.is_tokens != self.test.is_tokens:
            raise DataError(f"test samples of dtype {str(self.test.images.dtype)!r}: expected tokens in both sets")
        if self.train.classes != self.test.classes:
            raise DataError(f"{self.test.classes!r} classes in the test set: expected {self.train.classes!r}")
        if self.train.targets != self.test.targets:
            raise DataError(f"{self.test.targets!r} targets in the test set: expected {self.train.targets!r}")

    def with_moments(self, moments: tuple[float, float]) -> "TrainTest":
        """Return the data with these moments of its training set."""
        return replace(self, train=replace(self.train, moments=moments, is_checked=True))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shapes, dtypes and bytes, hexadecimal; equal if runs on the data would be.

        Of the data before its validation split, which the job describes. That of a packed dataset is of the digests of
        its blocks, and so another one than that of the same arrays in memory.
        """
        if self.known_digest is not None:
            return self.known_digest
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            for array in (part.images[:], part.labels):
                described = array.dtype.descr if array.dtype.names else array.dtype.str
                digest.update(f"{described} {array.shape} {part.classes};".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _check_kind(images: Samples) -> None:
    if images.dtype.names:
        for name in images.dtype.names:
            kind = images.dtype[name].base
            if kind not in (np.uint8, np.float32, np.int32):
                raise DataError(f"the input {name!r} is of dtype {str(kind)!r}: expected uint8, float32 or int32")
        return
    if images.dtype == np.int32 and images.ndim == 2:
        if 0 in images.shape:
            raise DataError(f"tokens of shape {images.shape!r}: expected (n, t), neither of them 0")
        return
    if images.dtype not in (np.uint8, np.float32):
        raise DataError(f"images of dtype {str(images.dtype)!r}: expected uint8 or float32")
    if images.ndim not in (2, 4) or 0 in images.shape:
        raise DataError(
            f"images of shape {images.shape!r}: expected (n, channels, height, width) or (n, features), none of them 0"
        )


def _check_images(images: NDArray[Any]) -> None:
    if images.dtype.names:
        for name in images.dtype.names:
            _check_images(images[name])
        return
    if images.dtype == np.int32 and int(images.min()) < 0:
        raise DataError(f"token {int(images.min())!r} in sample {_first(images < 0)}: expected integers from 0")
    if images.dtype == np.float32 and not np.isfinite(images).all():
        raise DataError(f"sample {_first(~np.isfinite(images))} holds an infinity or NaN: expected finite numbers")


def _check_label_kind(labels: NDArray[Any], classes: int) -> None:
    if labels.dtype.names:
        for name in labels.dtype.names:
            if labels.dtype[name].base not in (np.float32, np.int64):
                raise DataError(f"the target {name!r} is of dtype {str(labels.dtype[name].base)!r}: expected float32")
        return
    if classes and labels.dtype != np.int64:
        raise DataError(f"labels of dtype {str(labels.dtype)!r} and shape {labels.shape!r}: expected int64 and (n,)")
    if not classes and (labels.dtype != np.float32 or labels.ndim < 2 or 0 in labels.shape[1:]):
        raise DataError(
            f"labels of dtype {str(labels.dtype)!r} and shape {labels.shape!r}: expected float32 and (n, targets)"
        )


def _check_labels(labels: NDArray[Any], classes: int) -> None:
    if labels.dtype.names:
        for name in labels.dtype.names:
            _check_labels(labels[name], classes if labels.dtype[name].base == np.int64 else 0)
        weights = parts_of(labels)[1]
        if weights is not None and (weights < 0).any():
            raise DataError(f"the weight of sample {_first(weights < 0)} is below 0: expected numbers from 0 on")
        return
    if not classes and not np.isfinite(labels).all():
        raise DataError(f"label {_first(~np.isfinite(labels))} holds an infinity or NaN: expected finite numbers")
    # A number below 0 may be an ignored target: that depends on the job.
    outside = labels >= classes
    if classes and outside.any():
        index = _first(outside)
        value = int(labels[outside][0])
        raise DataError(f"label {value!r} at index {index}: expected an integer in [0, {classes})")


def _first(marked: NDArray[np.bool_]) -> int:
    """Return the first index whose entry holds."""
    return int(np.argwhere(marked)[0, 0])
