"""Normalisation uses exact constants, and shifts depend on the generator alone."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lockstep.common.data.dataset import Dataset
from lockstep.common.data.preparation import Preparation
from lockstep.common.errors import DataError
from lockstep.common.numerics.random import Purpose, generator

LAW = settings(derandomize=True, deadline=None, max_examples=50)
BYTES = hnp.arrays(np.uint8, (3, 1, 4, 5))


def dataset(images: NDArray[Any]) -> Dataset:
    return Dataset(images, np.zeros(len(images), np.int64), 1)


def rng(step: int = 0) -> np.random.Generator:
    return generator(0, Purpose.AUGMENT, at=step)


@given(images=BYTES)
@LAW
def test_constants_of_bytes_are_exact(images: NDArray[np.uint8]) -> None:
    prepared = Preparation.of(dataset(images))
    values = [Fraction(value, 255) for value in images.ravel().tolist()]
    mean = sum(values, Fraction()) / len(values)
    variance = sum(((value - mean) ** 2 for value in values), Fraction()) / len(values)
    assert prepared.mean == pytest.approx(float(mean), rel=1e-15)
    assert prepared.std**2 == pytest.approx(float(variance) or 1.0, rel=1e-14)


def test_constants_over_more_than_a_block_are_those_of_numpy() -> None:
    images = rng().integers(0, 256, (1500, 1, 28, 28), dtype=np.uint8)
    prepared = Preparation.of(dataset(images))
    assert prepared.mean == pytest.approx(images.mean() / 255, rel=1e-12)
    assert prepared.std == pytest.approx(images.std() / 255, rel=1e-12)


@given(images=BYTES)
@LAW
def test_training_bytes_become_normalised(images: NDArray[np.uint8]) -> None:
    preparation = Preparation.of(dataset(images))
    prepared = preparation.images(images)
    assert prepared.dtype == np.float32
    expected = (images / 255 - preparation.mean) / preparation.std
    np.testing.assert_allclose(prepared, expected, rtol=1e-5, atol=1e-5)


def test_floats_are_normalised_without_division_by_255() -> None:
    features = rng().normal(3.0, 2.0, (200, 5)).astype(np.float32)
    prepared = Preparation.of(dataset(features)).images(features)
    assert prepared.mean() == pytest.approx(0, abs=1e-5)
    assert prepared.std() == pytest.approx(1, abs=1e-5)


def test_equal_values_are_centred_and_not_scaled() -> None:
    preparation = Preparation.of(dataset(np.full((2, 3), 51, np.uint8)))
    assert (preparation.mean, preparation.std) == (0.2, 1.0)


def test_each_image_is_shifted_as_a_whole_within_the_bound() -> None:
    raw = rng().integers(1, 256, (40, 2, 6, 7), dtype=np.uint8)
    shifted = Preparation(0.0, 1 / 255, max_shift=2).images(raw, rng())
    moves = [_move(before.astype(np.float32), after, 2) for before, after in zip(raw, shifted, strict=True)]
    assert {dy for dy, _ in moves} == {dx for _, dx in moves} == {-2, -1, 0, 1, 2}


def _move(before: NDArray[np.float32], after: NDArray[np.float32], most: int) -> tuple[int, int]:
    """Return the one (dy, dx) that makes `after` from `before` with zeros moving in."""
    _, height, width = before.shape
    padded = np.pad(before, ((0, 0), (most, most), (most, most)))
    found = [
        (dy, dx)
        for dy in range(-most, most + 1)
        for dx in range(-most, most + 1)
        if np.allclose(padded[:, most - dy : most - dy + height, most - dx : most - dx + width], after)
    ]
    assert len(found) == 1
    return found[0]


def test_the_background_that_moves_in_is_normalised_too() -> None:
    preparation = Preparation(mean=0.5, std=0.5, max_shift=3)
    prepared = preparation.images(np.zeros((4, 1, 8, 8), np.uint8), rng())
    np.testing.assert_array_equal(prepared, -1.0)


def test_shifts_depend_on_the_generator_alone() -> None:
    raw = rng().integers(0, 256, (8, 1, 5, 5), dtype=np.uint8)
    preparation = Preparation(0.1, 0.3, max_shift=1)
    np.testing.assert_array_equal(preparation.images(raw, rng(1)), preparation.images(raw, rng(1)))
    assert not np.array_equal(preparation.images(raw, rng(1)), preparation.images(raw, rng(2)))
    np.testing.assert_array_equal(preparation.images(raw), Preparation(0.1, 0.3).images(raw, rng(1)))


def test_an_empty_micro_batch_stays_empty() -> None:
    prepared = Preparation(0.1, 0.3, max_shift=1).images(np.zeros((0, 1, 5, 5), np.uint8), rng())
    assert prepared.shape == (0, 1, 5, 5)


@pytest.mark.parametrize(("shape", "shift"), [((2, 4), 1), ((2, 1, 3, 3), -1), ((2, 1, 4, 3), 3)])
def test_shifts_need_images_and_a_bound(shape: tuple[int, ...], shift: int) -> None:
    with pytest.raises(DataError, match=f"(shifts of|max_shift =) {shift} "):
        Preparation.of(dataset(np.zeros(shape, np.uint8)), max_shift=shift)


def test_tokens_stay_as_they_are() -> None:
    tokens = np.array([[0, 300], [7, 2]], np.int32)
    preparation = Preparation.of(Dataset(tokens, np.zeros((2, 2), np.int64), 3))
    assert preparation == Preparation(0.0, 1.0)
    assert preparation.images(tokens) is tokens
    out = np.zeros_like(tokens)
    assert preparation.images(tokens, out=out) is out
    assert out.tolist() == tokens.tolist()
    with pytest.raises(DataError, match=r"shifts of 1 pixels over samples of shape \(2,\)"):
        Preparation.of(Dataset(tokens, np.zeros((2, 2), np.int64), 3), max_shift=1)
