"""The manifest of a dataset, and how its samples travel to workers that do not have it.

It is of the sets as a run uses them, once a validation set has been taken out of the training set.
"""

import hashlib
import math
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.preparation import Preparation
from lockstep.common.errors import DataError

PartName = Literal["train", "validation", "test"]

#: Most bytes of a message of samples, unless a single sample is longer, and most samples.
MESSAGE_BYTES, SAMPLES_AT_ONCE = 2**20, 2**16

_Count = Annotated[int, Meta(ge=0, le=2**40)]
_Shape = Annotated[tuple[_Count, ...], Meta(max_length=4)]


class PartInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One set: how many samples it has, and what each of them is."""

    samples: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    images_dtype: Literal["|u1", "<f4", "<i4"]
    sample_shape: _Shape
    labels_dtype: Literal["<i8", "<f4"]
    label_shape: _Shape

    @property
    def image_bytes(self) -> int:
        """Bytes of one sample without its label."""
        return np.dtype(self.images_dtype).itemsize * math.prod(self.sample_shape)

    @property
    def label_bytes(self) -> int:
        return np.dtype(self.labels_dtype).itemsize * math.prod(self.label_shape)

    @property
    def bytes_each(self) -> int:
        """Bytes of one sample with its label."""
        return self.image_bytes + self.label_bytes

    def in_a_message(self) -> int:
        """Return how many samples are asked for at once: at least one."""
        return max(1, min(SAMPLES_AT_ONCE, MESSAGE_BYTES // self.bytes_each))


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All sets of a dataset, and the constants by which samples are prepared."""

    classes: Annotated[int, Meta(ge=0, le=2**31)]
    #: Of `Preparation`, over the whole training set.
    mean: float
    std: float
    train: PartInfo
    test: PartInfo
    validation: PartInfo | None = None

    def parts(self) -> dict[PartName, PartInfo]:
        found: dict[PartName, PartInfo] = {"train": self.train, "test": self.test}
        return found if self.validation is None else {**found, "validation": self.validation}

    def key(self, dataset: str, split: float, seed: int) -> str:
        """Return the key under which samples are cached, 32 hex digits: of the dataset's digest and of its split."""
        text = f"{dataset} {split!r} {seed if split else 0} ".encode() + msgspec.json.encode(self, order="sorted")
        return hashlib.sha256(text).hexdigest()[:32]


def manifest_of(data: TrainTest) -> Manifest:
    """Return the manifest of a dataset; `DataError` if its samples are not sent."""
    if data.train.images.dtype.names or data.train.labels.dtype.names:
        raise DataError(
            "samples of several arrays, or with weights, are not sent to workers: expected one array of samples and "
            "one of labels; copy the data to the workers' machines, and remove ship_data"
        )
    preparation, validation = Preparation.of(data.train), data.validation
    return Manifest(
        classes=data.train.classes,
        mean=preparation.mean,
        std=preparation.std,
        train=part_info(data.train.images, data.train.labels),
        test=part_info(data.test.images, data.test.labels),
        validation=None if validation is None else part_info(validation.images, validation.labels),
    )


class Rows(Protocol):
    """Rows: those of an array, of a file, or of a file that is being written."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def part_info(samples: Rows, labels: Rows) -> PartInfo:
    """Return the entry of one set."""
    fields = {
        "samples": samples.shape[0],
        "images_dtype": samples.dtype.str,
        "sample_shape": samples.shape[1:],
        "labels_dtype": labels.dtype.str,
        "label_shape": labels.shape[1:],
    }
    return msgspec.convert(fields, PartInfo)


def part_of(data: TrainTest, name: PartName) -> Dataset | None:
    return {"train": data.train, "test": data.test, "validation": data.validation}[name]


def packed(part: Dataset, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return samples as words to be sent: all images, then all labels, as they lie in memory, padded with zeros.

    The words are float32 only because all arrays of the protocol are.
    """
    data = part.images.take(rows, axis=0).tobytes() + part.labels.take(rows, axis=0).tobytes()
    return np.frombuffer(data + bytes(-len(data) % 4), np.float32)


def unpacked(info: PartInfo, count: int, words: NDArray[Any]) -> tuple[bytes, bytes] | None:
    """Return the bytes of the images and of the labels of so many samples; None if the words are of another size."""
    split, end = count * info.image_bytes, count * info.bytes_each
    data = words.tobytes()
    return (data[:split], data[split:end]) if len(data) == end + -end % 4 else None
