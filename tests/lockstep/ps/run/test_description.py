"""A dataset without its samples: what a run's receipt keeps of its data."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import load_folder
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.records import as_records
from lockstep.common.data.source import with_validation
from lockstep.common.job.job import Job
from lockstep.ps.run.description import DataDescription, describe
from tests.lockstep.common.data.folders import ORIGIN, write_folder

RNG = np.random.default_rng(7)
BYTES = RNG.integers(0, 256, (12, 3, 4, 5), np.uint8)
FLOATS = RNG.normal(3.0, 2.0, (12, 3, 4, 5)).astype(np.float32)
TOKENS = RNG.integers(0, 9, (12, 6)).astype(np.int32)
RECORDS = as_records({"picture": BYTES, "words": TOKENS})
CLASSES = np.arange(12) % 3
NUMBERS = RNG.normal(size=(12, 2)).astype(np.float32)


def described(samples: NDArray[Any], labels: NDArray[Any], *, is_normalized: bool = True) -> DataDescription:
    part = Dataset(samples, labels, 3 if labels.dtype == np.int64 else 0)
    data = with_validation(TrainTest("some", part, part), 0.25, 0)
    found = describe(data, Job(data="some.npz", normalize=is_normalized))
    # As a receipt has it.
    return msgspec.json.decode(msgspec.json.encode(found), type=DataDescription)


@pytest.mark.parametrize("labels", [CLASSES, NUMBERS], ids=["classes", "numbers"])
@pytest.mark.parametrize("samples", [BYTES, FLOATS, TOKENS, RECORDS], ids=["bytes", "floats", "tokens", "records"])
def test_a_form_is_that_of_the_data(samples: NDArray[Any], labels: NDArray[Any]) -> None:
    found = described(samples, labels)
    form = found.form()
    for part in (form.train, form.test):
        assert (part.images.dtype, part.images.shape[1:]) == (samples.dtype, samples.shape[1:])
        assert (part.labels.dtype, part.labels.shape[1:]) == (labels.dtype, labels.shape[1:])
        assert part.classes == (3 if labels is CLASSES else 0)
    assert (found.training_samples, found.validation_samples, found.test_samples) == (9, 3, 12)


@pytest.mark.parametrize("samples", [BYTES, FLOATS, TOKENS, RECORDS], ids=["bytes", "floats", "tokens", "records"])
def test_samples_are_prepared_bit_for_bit_as_in_training(samples: NDArray[Any]) -> None:
    part = Dataset(samples, CLASSES, 3)
    data = with_validation(TrainTest("some", part, part), 0.25, 0)
    expected = Preparation.of(data.train).images(samples)
    assert described(samples, CLASSES).preparation.images(samples).tobytes() == expected.tobytes()


def test_without_normalization_only_bytes_are_scaled() -> None:
    found = described(BYTES, CLASSES, is_normalized=False).preparation
    assert (found.mean, found.std) == (0.0, 1.0)


def test_the_largest_value_of_images_is_known_and_tokens_that_are_drawn_are_in_the_data() -> None:
    assert described(FLOATS, CLASSES).form().train.largest() == FLOATS.max()
    drawn = described(TOKENS, CLASSES).samples(100)
    assert 1 < len(np.unique(drawn)) <= 9
    assert drawn.max() <= TOKENS.max()


def test_samples_that_are_drawn_differ_and_are_the_same_each_time() -> None:
    found = described(FLOATS, CLASSES)
    assert found.samples(3).tobytes() == found.samples(3).tobytes()
    assert found.samples(3)[0].tobytes() != found.samples(3)[1].tobytes()


def test_a_packed_folder_has_its_names_and_its_origin(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "some.data", (BYTES, CLASSES), (BYTES, CLASSES), 3, ("a", "b", "c"))
    found = describe(load_folder(folder), Job(data=str(folder)))
    assert found.class_names == ["a", "b", "c"]
    assert found.origin == ORIGIN
    assert found.form().class_names == ("a", "b", "c")


def test_a_form_that_no_memory_holds_is_refused() -> None:
    text = msgspec.json.encode(described(BYTES, CLASSES)).replace(b"[3,4,5]", b"[3000000,4000000,5]")
    with pytest.raises(msgspec.ValidationError, match="more than"):
        msgspec.json.decode(text, type=DataDescription)
