"""Pictures of digits in MNIST's form: whatever their size, place and polarity; the filter that resizes them."""

import numpy as np
import pytest

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.errors import DataError
from lockstep.common.numerics.random import Purpose, generator
from lockstep.results.evaluation.pictures import BOX, as_digit, resized
from tests.simulation.small import mnist

DIGITS = mnist().test.images[:30, 0] / 255.0


def centre(field: Array) -> tuple[float, float]:
    places = np.arange(28)
    return float(field.sum(axis=1) @ places / field.sum()), float(field.sum(axis=0) @ places / field.sum())


def likeness(field: Array, other: Array) -> float:
    """Return the correlation; the centre of mass is rounded to a pixel, and may fall into the next one."""
    shifts = [np.roll(field, (down, right), axis=(0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return max(float(np.corrcoef(shifted.ravel(), other.ravel())[0, 1]) for shifted in shifts)


def on_a_page(digit: Array, scale: int, top: int, left: int) -> Array:
    """Return a digit, enlarged, somewhere on a large dark page."""
    page = np.zeros((400, 500))
    page[top : top + 28 * scale, left : left + 28 * scale] = resized(digit, 28 * scale, 28 * scale)
    return page


def test_mnists_own_images_stay_what_they_are() -> None:
    for digit in DIGITS:
        assert likeness(as_digit(digit), digit) > 0.95


@pytest.mark.parametrize(("scale", "top", "left"), [(2, 0, 0), (5, 200, 30), (10, 90, 200)])
def test_size_and_place_do_not_matter(scale: int, top: int, left: int) -> None:
    for digit in DIGITS[:10]:
        assert likeness(as_digit(on_a_page(digit, scale, top, left)), digit) > 0.9


def test_polarity_and_contrast_do_not_matter() -> None:
    page = on_a_page(DIGITS[0], 4, 100, 100)
    for other in (1 - page, 0.9 - 0.3 * page, 0.2 + 0.1 * page):
        np.testing.assert_allclose(as_digit(other), as_digit(page), atol=1e-9)


def test_it_lies_in_a_box_of_20_and_its_mass_in_the_middle() -> None:
    for digit in DIGITS:
        field = as_digit(on_a_page(digit, 6, 10, 300))
        rows, columns = np.flatnonzero(field.any(axis=1)), np.flatnonzero(field.any(axis=0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == BOX
        assert centre(field) == pytest.approx((14, 14), abs=0.51)
        assert field.max() == 1.0


def test_a_speck_of_dust_and_noise_do_not_matter() -> None:
    page = on_a_page(DIGITS[0], 6, 100, 100)
    dusty = page + 0.05 * np.sin(np.arange(200_000)).reshape(400, 500)
    dusty[390, 490] = 1.0
    assert likeness(as_digit(dusty), as_digit(page)) > 0.95


@pytest.mark.parametrize("gray", [0.0, 1.0, 0.5])
def test_an_empty_page_is_refused(gray: float) -> None:
    with pytest.raises(DataError, match="nothing is drawn in it: all pixels are within 1% of one gray"):
        as_digit(np.full((50, 40), gray) + 0.01 * (np.arange(2000).reshape(50, 40) == 900))


def test_a_dash_and_a_dot_stay_inside() -> None:
    for shape in ((1, 60), (60, 1), (1, 1)):
        page = np.zeros((100, 100))
        page[20 : 20 + shape[0], 30 : 30 + shape[1]] = 1.0
        assert as_digit(page).sum() > 0


IMAGE = generator(0, Purpose.CANARY).random((24, 36))


@pytest.mark.parametrize("size", [(24, 36), (12, 12), (7, 5), (1, 1), (50, 90)])
def test_a_constant_stays_constant(size: tuple[int, int]) -> None:
    np.testing.assert_allclose(resized(np.full((24, 36), 0.3), *size), np.full(size, 0.3))


def test_the_same_size_is_the_same_image() -> None:
    np.testing.assert_allclose(resized(IMAGE, 24, 36), IMAGE)


def test_every_pixel_counts_when_it_becomes_smaller() -> None:
    for place in ((12, 17), (5, 30), (11, 8)):
        dot = np.zeros((24, 36))
        dot[place] = 1.0
        assert resized(dot, 6, 9).sum() == pytest.approx(1 / 16, rel=0.05)


def test_between_two_pixels_it_is_interpolated() -> None:
    np.testing.assert_allclose(resized(np.array([[0.0, 1.0]]), 1, 4), [[0.0, 0.25, 0.75, 1.0]])


def test_channels_are_resized_each() -> None:
    both = resized(np.stack([IMAGE, 1 - IMAGE]), 6, 9)
    np.testing.assert_allclose(both[0], resized(IMAGE, 6, 9))
    np.testing.assert_allclose(both.sum(axis=0), np.ones((6, 9)))
