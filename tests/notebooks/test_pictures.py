"""Pictures become smaller and stay the same to the eye."""

import base64
import io

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="pictures are made small by Pillow, which comes with matplotlib")

from tests.notebooks.pictures import small, with_small_pictures  # noqa: E402


def gradient(alpha: int = 255) -> bytes:
    pixels = np.full((40, 200, 4), alpha, np.uint8)
    pixels[:, :, 0] = np.arange(200)
    pixels[:, :, 1:3] = 10
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def test_picture_is_smaller_and_has_nearly_its_colours() -> None:
    result = small(gradient())
    assert len(result) < len(gradient()) / 3
    before, after = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int) for png in (gradient(), result))
    assert before.shape == after.shape
    assert np.abs(before - after).max() <= 2


def test_what_shines_through_is_white() -> None:
    picture = Image.open(io.BytesIO(small(gradient(alpha=0)))).convert("RGB")
    assert picture.getpixel((100, 20)) == (255, 255, 255)


def test_small_picture_stays_as_it_is() -> None:
    assert small(small(gradient())) == small(gradient())


def test_pictures_of_a_notebook_are_found() -> None:
    output = {"output_type": "display_data", "data": {"image/png": base64.b64encode(gradient()).decode()}}
    cell = {"cell_type": "code", "source": "", "execution_count": 1, "outputs": [output]}
    after = with_small_pictures({"cells": [cell], "metadata": {}})["cells"][0]["outputs"][0]["data"]["image/png"]
    assert base64.b64decode(after) == small(gradient())
