"""What there is to know of a dataset beside its samples, and how samples travel: for those who do not have it.

Of the sets as a run uses them: once a validation set is taken out of the training set.
"""

import hashlib
import math
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from common.data.dataset import Dataset, TrainTest
from common.data.preparation import Preparation

PartName = Literal["train", "validation", "test"]

#: Bytes of a message of samples at most, unless a single one is longer; and their number.
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
        """Bytes of one label."""
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
        """Return the sets that there are."""
        found: dict[PartName, PartInfo] = {"train": self.train, "test": self.test}
        return found if self.validation is None else {**found, "validation": self.validation}

    def key(self, dataset: str, split: float, seed: int) -> str:
        """Return what samples are kept under, 32 hex digits: it changes with all that decides which is where.

        That is the dataset, told by its digest, and how a validation set was drawn from it.
        """
        said = f"{dataset} {split!r} {seed if split else 0} ".encode() + msgspec.json.encode(self, order="sorted")
        return hashlib.sha256(said).hexdigest()[:32]


def manifest_of(data: TrainTest) -> Manifest:
    """Return the manifest of data."""
    preparation = Preparation.of(data.train)
    return Manifest(
        classes=data.train.classes,
        mean=preparation.mean,
        std=preparation.std,
        train=facts_of(data.train),
        test=facts_of(data.test),
        validation=None if data.validation is None else facts_of(data.validation),
    )


def facts_of(part: Dataset) -> PartInfo:
    """Return the facts of one set."""
    return msgspec.convert(
        {
            "samples": len(part),
            "images_dtype": part.images.dtype.str,
            "sample_shape": part.images.shape[1:],
            "labels_dtype": part.labels.dtype.str,
            "label_shape": part.labels.shape[1:],
        },
        PartInfo,
    )


def part_of(data: TrainTest, name: PartName) -> Dataset | None:
    """Return one set."""
    match name:
        case "train":
            return data.train
        case "test":
            return data.test
        case "validation":
            return data.validation


def packed(part: Dataset, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return samples as words to be sent: all images, then all labels, as they stand in memory, and zeros to the end.

    The words are float32, as all arrays of the protocol; what they mean is nobody's business on the way.
    """
    data = part.images.take(places, axis=0).tobytes() + part.labels.take(places, axis=0).tobytes()
    return np.frombuffer(data + bytes(-len(data) % 4), np.float32)


def unpacked(facts: PartInfo, count: int, words: NDArray[Any]) -> tuple[bytes, bytes] | None:
    """Return the bytes of the images and of the labels of so many samples; None where that is not what was sent."""
    split, end = count * facts.image_bytes, count * facts.bytes_each
    data = words.tobytes()
    return (data[:split], data[split:end]) if len(data) == end + -end % 4 else None
