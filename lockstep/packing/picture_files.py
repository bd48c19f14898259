"""Opens picture files that anybody may have made: few formats, regular files, and no more pixels than memory has for.

Whoever made a file chooses what its decoder does. So what the file says of itself is looked at before it is decoded.
"""

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lockstep.common.errors import DataError
from lockstep.common.files.reading import open_regular
from lockstep.common.files.sanitize import one_line

#: The formats whose decoders are used. Of the others that Pillow knows, some start a program (an EPS starts
#: Ghostscript, whatever its file is called), and none is what datasets are kept in.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: What `FORMATS` are called in a message.
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"
#: Bytes of a file, and pixels: decoding and converting take up to 11 bytes for each.
MOST_BYTES, MOST_PIXELS = 2**27, 25_000_000
#: Decoders that are loops in Python, with most pixels for them: 2 us each.
_LOOPS, _MOST_LOOPED = ("ppm", "ppm_plain", "bmp_rle"), 2**20
#: Each scan of a JPEG goes over all of its pixels. Progressive ones have about ten.
_MOST_SCANS, _SCAN = 100, re.compile(b"\xff\xda")
#: What decoders raise for damaged bytes: mostly the first two, but these lead to whatever they lead to.
_RAISED = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error)
#: The tag of EXIF data that says how a picture is turned.
_ORIENTATION = 0x0112
#: Rows that are converted at once.
_STRIP = 256


@contextmanager
def open_picture(path: Path, mode: str = "RGB", size: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """Give a picture whose pixels have not been decoded yet, and would fit into memory.

    With a `size` (height, width), what a JPEG has of more than twice as many pixels in each direction is left out.
    Raises DataError with the path for anything else, also for what the context raises on damaged files.
    """
    shown = one_line(str(path))
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            open_regular(path, MOST_BYTES) as file,
            Image.open(file, formats=FORMATS) as opened,
        ):
            _check(opened, file, mode, size)
            yield opened
    except DataError as error:
        raise DataError(f"{shown}: {error}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{shown}: has too many pixels: expected at most {MOST_PIXELS:,}; make it smaller") from None
    except _RAISED as error:
        reason = getattr(error, "strerror", None) or one_line(str(error), 80).partition(" <")[0]
        if isinstance(error, UnidentifiedImageError):
            reason = f"not a {FORMAT_NAMES}, or damaged"
        raise DataError(
            f"{shown}: is not a picture that can be read ({reason}): repair, convert or remove it"
        ) from None


def _check(opened: Any, file: BinaryIO, mode: str, size: tuple[int, int] | None) -> None:
    """Raise DataError, whose text lacks the path, for a picture that takes too much memory or time."""
    width, height = opened.size
    if size is not None and opened.format == "JPEG" and opened.getexif().get(_ORIENTATION, 1) == 1:
        # The decoder leaves out what would be averaged away: at least twice as many pixels stay as are asked for.
        opened.draft(mode, (2 * size[1], 2 * size[0]))
    pixels = decoded_pixels(opened)
    if pixels > MOST_PIXELS:
        raise DataError(f"has {width} x {height} pixels: expected at most {MOST_PIXELS:,}; make it smaller")
    if pixels > _MOST_LOOPED and any(tile[0] in _LOOPS for tile in opened.tile):
        raise DataError(f"has {width} x {height} pixels in a slow kind of {opened.format}: save it as PNG")
    if opened.format in ("JPEG", "MPO"):
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            if sum(1 for _ in _SCAN.finditer(content)) > _MOST_SCANS:
                raise DataError(f"has more than {_MOST_SCANS} scans: save it again")


def decoded_pixels(opened: Any) -> int:
    """Return how many pixels are in memory while a picture is decoded: at least those that it has then."""
    # A progressive JPEG keeps all coefficients until its last scan.
    left_out = opened.decoderconfig[0] if "progressive" in opened.info and opened.decoderconfig else 1
    return int(opened.width * opened.height * left_out**2)


def turn_upright(opened: Image.Image) -> None:
    """Decode a picture, and turn it as its EXIF data says, in place."""
    ImageOps.exif_transpose(opened, in_place=True)


def deep_pixels(opened: Image.Image) -> tuple[NDArray[Any], int] | None:
    """Return the pixels (height, width) of a picture whose values are not bytes, and what white is: black is 0.

    None if they are bytes. Integers are of 16 bits. Floating-point pixels have to be from 0 to 1: what white is in all
    pictures does not follow from the largest value of one. Raises DataError, without the path, for other values.
    """
    if not opened.mode.startswith(("I", "F")):
        return None
    values = np.asarray(opened)
    white, kind = (1, "floating-point") if opened.mode == "F" else (65535, "integer")
    lowest, highest = float(values.min()), float(values.max())
    if not (lowest >= 0 and highest <= white):  # also for NaN
        raise DataError(f"has {kind} pixels from {lowest:g} to {highest:g}: expected 0 (black) to {white} (white)")
    return values, white


def on_white(opened: Image.Image) -> Image.Image:
    """Return a picture that has transparent parts without them, RGB, as if it lay on white paper."""
    solid = Image.new("RGB", opened.size)
    for top in range(0, opened.height, _STRIP):
        strip = opened.crop((0, top, opened.width, min(top + _STRIP, opened.height))).convert("RGBA")
        solid.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return solid
