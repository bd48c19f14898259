"""A dataset without its samples: their form, how they are prepared, and how a source becomes such samples.

A run's receipt has it. So its model can be used on a machine that never had the data.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.data.columns import Column, Real, Text
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import MANIFEST, Conversion, Origin, read_manifest
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.records import fields_of
from lockstep.common.job.job import Job
from lockstep.common.numerics.random import Purpose, generator

#: Bytes of one sample, which a description may come from anywhere with.
MOST_BYTES = 2**31

#: Axes of several images, (n, channels, height, width).
IMAGES = 4

#: Samples whose tokens are looked at for the largest of them.
FIRST = 64

_Count = Annotated[int, Meta(ge=0, le=2**40)]


class ArrayForm(msgspec.Struct, frozen=True):
    """One array of a sample, or of its label."""

    #: Its name if there are several, empty otherwise.
    name: Text
    #: The type of its values, as NumPy writes it.
    dtype: Literal["|u1", "<f4", "<i4", "<i8"]
    #: Its shape, without the axis of samples.
    shape: Annotated[tuple[_Count, ...], Meta(max_length=32)]
    #: Of images, the largest value in the training set; of tokens, that of a few samples; otherwise 0.
    largest: Real = 0.0

    def __post_init__(self) -> None:
        if math.prod(self.shape) * np.dtype(self.dtype).itemsize > MOST_BYTES:
            raise ValueError(f"a sample of shape {self.shape} has more than {MOST_BYTES:,} bytes")

    def drawn(self, rng: np.random.Generator, count: int) -> NDArray[Any]:
        """Return values that such arrays may have."""
        shape = (count, *self.shape)
        if self.dtype == "<f4":
            return rng.random(shape, dtype=np.float32)
        return rng.integers(0, 256 if self.dtype == "|u1" else int(self.largest) + 1, shape, np.dtype(self.dtype))


class DataDescription(Conversion, frozen=True, kw_only=True):
    """A run's data without its samples."""

    #: The arrays of a sample.
    inputs: Annotated[list[ArrayForm], Meta(min_length=1, max_length=4096)]
    #: The arrays of its label.
    labels: Annotated[list[ArrayForm], Meta(min_length=1, max_length=4096)]
    #: The preparation of samples.
    preparation: Preparation
    #: The number of samples to train on, without those of the validation set.
    training_samples: Annotated[int, Meta(ge=1, le=2**40)]
    #: The number of samples in the validation set, 0 without such a set.
    validation_samples: Annotated[int, Meta(ge=0, le=2**40)]
    #: The number of samples to test with.
    test_samples: Annotated[int, Meta(ge=1, le=2**40)]

    @property
    def is_table(self) -> bool:
        """True if samples are rows of a table."""
        return self.kind == "table"

    def samples(self, count: int) -> NDArray[Any]:
        """Return samples of the same form, whose values are drawn."""
        return _joined(self.inputs, count)

    def form(self) -> TrainTest:
        """Return a dataset of the same form, with one sample in each set, whose values are drawn."""
        is_plain = len(self.inputs) == 1
        part = Dataset(
            self.samples(1),
            _joined(self.labels, 1),
            self.classes,
            is_checked=True,
            moments=(self.preparation.mean, self.preparation.std) if is_plain else None,
            known_largest=self.inputs[0].largest if is_plain else None,
        )
        name = Path(self.origin.source).stem
        return TrainTest(name, part, part, class_names=tuple(self.class_names), known_digest="")


def _joined(forms: list[ArrayForm], count: int) -> NDArray[Any]:
    rng = generator(0, Purpose.CANARY)
    if not forms[0].name:
        return forms[0].drawn(rng, count)
    records = np.empty(count, [(form.name, form.dtype, form.shape) for form in forms])
    for form in forms:
        records[form.name] = form.drawn(rng, count)
    return records


def describe(data: TrainTest, job: Job) -> DataDescription:
    """Return the description of a job's dataset, once a validation set has been taken out of it."""
    train, spec, folder = data.train, job.data, Path(job.data).expanduser()
    # "mnist" is not a place.
    source = os.path.abspath(folder) if folder.exists() else spec
    found: Conversion = (
        read_manifest(folder)
        if (folder / MANIFEST).is_file()
        else Conversion(
            kind="arrays", classes=train.classes, class_names=list(data.class_names), origin=Origin(source=source)
        )
    )
    if (scale := job.target_scale) is not None:
        targets = [Column(name="", mean=mean, std=std) for mean, std in zip(scale[::2], scale[1::2], strict=True)]
        found = replace(found, targets=targets)
    return DataDescription(
        **{name: getattr(found, name) for name in Conversion.__struct_fields__},
        inputs=_forms(train.images[:FIRST], train),
        labels=_forms(train.labels[:1]),
        preparation=Preparation.of(train) if job.normalize else Preparation(0.0, 1.0),
        training_samples=len(train),
        validation_samples=len(data.validation or ()),
        test_samples=len(data.test),
    )


def _forms(rows: NDArray[Any], of: Dataset | None = None) -> list[ArrayForm]:
    """Return the forms of the arrays of these rows, which are the first samples of a set, or labels."""
    forms = []
    for name, array in fields_of(rows).items():
        largest = 0.0
        if array.dtype == np.int32:
            largest = float(array.max())
        elif of is not None and not name and array.dtype == np.float32 and array.ndim == IMAGES:
            largest = of.largest()
        forms.append(ArrayForm(name, array.dtype.newbyteorder("<").str, array.shape[1:], largest))  # type: ignore[arg-type]
    return forms
