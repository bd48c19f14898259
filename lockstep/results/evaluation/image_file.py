"""Read image files as arrays; the only file that imports Pillow, which is an extra."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lockstep.common.errors import DataError

#: Most pixels of an image: 100 megapixels take 1.2 GB while they are processed.
MOST_PIXELS = 100_000_000


def read_image(path: Path) -> NDArray[np.float64]:
    """Return an image as (3, height, width), from 0 to 1, upright. Raises DataError if the file is not an image.

    Transparent areas become white if the drawing is dark, and black if it is light.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about small defects: what cannot be read raises
            with Image.open(path) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise DataError(f"{path}: {opened.width} x {opened.height} pixels: expected at most {MOST_PIXELS}")
                return _array(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "damaged, or not a format that Pillow knows"
        raise DataError(f"{path}: cannot be read ({reason}): expected an image, such as PNG or JPEG") from None


def _array(image: Image.Image) -> NDArray[np.float64]:
    if image.mode.startswith(("I", "F")):
        # 16 bits or more, of which the conversion by Pillow would only keep the lowest eight.
        deep = np.asarray(image, dtype=np.float64)
        most = 65535.0 if image.mode.startswith("I") else max(1.0, float(deep.max()))
        return np.broadcast_to(np.clip(deep / most, 0.0, 1.0), (3, *deep.shape))
    rgba = np.asarray(image.convert("RGBA"), dtype=np.float64).transpose(2, 0, 1) / 255.0
    colours, opacity = rgba[:3], rgba[3]
    drawn = float(opacity.sum())
    is_light = drawn > 0 and float((colours.mean(axis=0) * opacity).sum()) > 0.5 * drawn
    return np.asarray(colours * opacity + (0.0 if is_light else 1.0) * (1.0 - opacity))
