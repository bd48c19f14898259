"""What stands for a dataset elsewhere, and samples on their way."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.manifest import MESSAGE_BYTES, Manifest, manifest_of, packed, part_info, unpacked
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.source import with_validation
from tests.simulation.small import digits


def tokens() -> Dataset:
    return Dataset(np.arange(24, dtype=np.int32).reshape(4, 6), np.ones((4, 6), np.int64), 30)


def numbers() -> Dataset:
    return Dataset(np.ones((5, 3), np.float32), np.arange(10, dtype=np.float32).reshape(5, 2), 0)


def test_it_says_what_samples_are_and_how_they_are_prepared() -> None:
    manifest, preparation = manifest_of(digits()), Preparation.of(digits().train)
    assert (manifest.classes, manifest.mean, manifest.std) == (10, preparation.mean, preparation.std)
    assert (manifest.train.samples, manifest.train.sample_shape, manifest.train.bytes_each) == (40, (1, 28, 28), 792)
    assert list(manifest.parts()) == ["train", "test"]
    split = manifest_of(with_validation(digits(), 0.25, 1))
    assert [(name, part.samples) for name, part in split.parts().items()] == [
        ("train", 30),
        ("test", 30),
        ("validation", 10),
    ]


def test_it_travels_and_stays_what_it_is() -> None:
    manifest = manifest_of(digits())
    assert msgspec.convert(msgspec.to_builtins(manifest), Manifest) == manifest


@pytest.mark.parametrize("made", [lambda: digits().train, tokens, numbers], ids=["images", "tokens", "numbers"])
def test_samples_travel_exactly(made: Callable[[], Dataset]) -> None:
    part = made()
    places = np.array([3, 0, 2])
    info = part_info(part.images, part.labels)
    data = unpacked(info, 3, packed(part, places))
    assert data is not None
    images = np.frombuffer(data[0], info.images_dtype).reshape(3, *info.sample_shape)
    labels = np.frombuffer(data[1], info.labels_dtype).reshape(3, *info.label_shape)
    assert np.array_equal(images, part.images[places])
    assert np.array_equal(labels, part.labels[places])


def test_too_few_or_too_many_bytes_are_noticed() -> None:
    part = digits().train
    words = packed(part, np.arange(3))
    assert unpacked(part_info(part.images, part.labels), 3, words) is not None
    for odd in (words[:-1], np.append(words, np.float32(0))):
        assert unpacked(part_info(part.images, part.labels), 3, odd) is None


def test_a_message_is_bounded_and_holds_a_sample_at_least() -> None:
    info = part_info(digits().train.images, digits().train.labels)
    assert info.in_a_message() == MESSAGE_BYTES // 792
    assert msgspec.structs.replace(info, sample_shape=(3, 4000, 4000)).in_a_message() == 1


def test_what_samples_are_kept_under_changes_with_all_that_decides_which_is_where() -> None:
    # Tokens have the same constants whatever is taken out: a manifest alone would not tell two splits apart.
    data = TrainTest("text", tokens(), tokens())
    digest = data.digest
    splits = {manifest_of(with_validation(data, 0.25, seed)).key(digest, 0.25, seed) for seed in (1, 2)}
    manifest = manifest_of(data)
    assert len({*splits, manifest.key(digest, 0.0, 1), manifest.key("0" * 64, 0.0, 1)}) == 4
    assert manifest.key(digest, 0.0, 1) == manifest.key(digest, 0.0, 2)


def test_a_dataset_of_tokens_needs_no_constants() -> None:
    data = TrainTest("text", tokens(), tokens())
    assert (manifest_of(data).mean, manifest_of(data).std) == (0.0, 1.0)
