"""Read image files as arrays to predict from; needs Pillow, which is an extra."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lockstep.packing.pictures import deep_pixels, open_picture, turn_upright

#: Most pixels that an image keeps: no model takes more, and as float64 in four channels they take 32 MB.
MOST_KEPT = 2**20


def read_image(path: Path) -> NDArray[np.float64]:
    """Return an image as (3, height, width), from 0 to 1, upright. Raises DataError if the file is not an image.

    One of more than `MOST_KEPT` pixels is made smaller. Transparent areas become white if the drawing is dark, and
    black if it is light.
    """
    with open_picture(path) as opened:
        turn_upright(opened)
        if (deep := deep_pixels(opened)) is not None:
            values, white = deep
            opened.close()  # frees its pixels, here and below
            gray = _reduced(Image.fromarray(np.divide(values, white, dtype=np.float32)))
            return np.broadcast_to(np.asarray(gray, np.float64), (3, gray.height, gray.width))
        image = opened.convert("RGBA")
        opened.close()
        return _on_paper(_reduced(image))


def _reduced(image: Image.Image) -> Image.Image:
    factor = math.ceil(math.sqrt(image.width * image.height / MOST_KEPT))
    return image.reduce(factor) if factor > 1 else image


def _on_paper(image: Image.Image) -> NDArray[np.float64]:
    rgba = np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255.0
    colours, opacity = rgba[:3], rgba[3]
    drawn = float(opacity.sum())
    is_light = drawn > 0 and float((colours.mean(axis=0) * opacity).sum()) > 0.5 * drawn
    return np.asarray(colours * opacity + (0.0 if is_light else 1.0) * (1.0 - opacity))
