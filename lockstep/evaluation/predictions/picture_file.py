"""Reads picture files as arrays; the only file that imports Pillow, which is an extra."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from common.errors import DataError

#: Pixels above which a picture is refused: 100 megapixels take 1.2 GB while they are worked on.
MOST_PIXELS = 100_000_000


def read_picture(path: Path) -> NDArray[np.float64]:
    """Return a picture as (3, height, width), 0 to 1, upright; `DataError` where it is none.

    What is transparent becomes white behind dark drawing, and black behind light.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are a little wrong: what cannot be read raises
            with Image.open(path) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise DataError(f"{path}: {opened.width} x {opened.height} pixels: expected at most {MOST_PIXELS}")
                return _array(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        told = getattr(error, "strerror", None) or "of no format that Pillow knows, or damaged"
        raise DataError(f"{path}: cannot be read ({told}): expected a picture, as a PNG or JPEG") from None


def _array(picture: Image.Image) -> NDArray[np.float64]:
    if picture.mode.startswith(("I", "F")):
        # 16 bits or more, of which Pillow's own conversion keeps the lowest eight.
        deep = np.asarray(picture, dtype=np.float64)
        most = 65535.0 if picture.mode.startswith("I") else max(1.0, float(deep.max()))
        return np.broadcast_to(np.clip(deep / most, 0.0, 1.0), (3, *deep.shape))
    rgba = np.asarray(picture.convert("RGBA"), dtype=np.float64).transpose(2, 0, 1) / 255.0
    colours, opacity = rgba[:3], rgba[3]
    drawn = float(opacity.sum())
    is_light = drawn > 0 and float((colours.mean(axis=0) * opacity).sum()) > 0.5 * drawn
    return np.asarray(colours * opacity + (0.0 if is_light else 1.0) * (1.0 - opacity))
