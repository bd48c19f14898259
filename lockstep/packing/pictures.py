"""Files of pictures, and folders of them as sources, with a folder for each class.

A file may be hostile, and its content chooses what a decoder does. So its format and its size are read first,
and it is decoded only if memory has room for its pixels.
"""

import math
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lockstep.common.errors import DataError
from lockstep.common.files.reading import open_regular
from lockstep.common.files.sanitize import one_line
from lockstep.common.runtime.environment import cores
from lockstep.packing.files import files_below, folders_in, has_files
from lockstep.packing.options import PackOptions, SampleSource

#: The formats whose decoders are used. Of the others that Pillow knows, some start a program (an EPS starts
#: Ghostscript, whatever its file is called), and none is what datasets are kept in.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: The `FORMATS` in a message.
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"
#: Bytes of a file, and pixels: decoding and converting take up to 11 bytes for each.
MOST_BYTES, MOST_PIXELS = 2**27, 25_000_000
#: Decoders that are loops in Python, with most pixels for them: 2 us each.
_LOOPS, _MOST_LOOPED = ("ppm", "ppm_plain", "bmp_rle"), 2**20
#: Each scan of a JPEG goes over all of its pixels. Progressive ones have about ten.
_MOST_SCANS, _SCAN = 100, re.compile(b"\xff\xda")
#: Errors of decoders for damaged bytes: mostly the first two, but damage can have any consequence.
_RAISED = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error)
#: The tag of EXIF data that says how a picture is turned.
_ORIENTATION = 0x0112
#: Rows that are converted at once.
_STRIP = 256
#: Pixels that an image to predict from keeps: no model takes more, and as float64 in four channels they take 32 MB.
MOST_KEPT = 2**20


@contextmanager
def open_picture(path: Path, mode: str = "RGB", size: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """Give a picture whose pixels have not been decoded yet, and would fit into memory.

    With a `size` (height, width), what a JPEG has of more than twice as many pixels in each direction is left out.
    Raises DataError with the path for anything else, also for what the context raises on damaged files.
    """
    try:
        with (
            named_faults(path),
            warnings.catch_warnings(action="ignore"),
            open_regular(path, MOST_BYTES) as file,
            Image.open(file, formats=FORMATS) as opened,
        ):
            _check(opened, file, mode, size)
            yield opened
    except Image.DecompressionBombError:
        raise DataError(
            f"{one_line(str(path))}: has too many pixels: expected at most {MOST_PIXELS:,}; make it smaller"
        ) from None
    except _RAISED as error:
        reason = getattr(error, "strerror", None) or one_line(str(error), 80).partition(" <")[0]
        if isinstance(error, UnidentifiedImageError):
            reason = f"not a {FORMAT_NAMES}, or damaged"
        raise DataError(
            f"{one_line(str(path))}: is not a picture that can be read ({reason}): repair, convert or remove it"
        ) from None


@contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """Put the path of a picture before the text of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{one_line(str(path))}: {error}") from None


def is_animated(opened: Any) -> bool:
    """Tell whether a picture has several frames; those of a JPEG are previews."""
    with suppress(*_RAISED):
        return opened.format in ("GIF", "WEBP", "TIFF", "PNG") and bool(getattr(opened, "is_animated", False))
    return False


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


#: Names of a folder with the test set's pictures, next to `train`.
TRAIN_NAME, TEST_NAMES = "train", ("test", "val", "valid", "validation")
#: Pictures that are held at once at most, and bytes of them, unless one alone has more; and the most that one may have.
AT_ONCE, AT_ONCE_BYTES, MOST_SAMPLE_BYTES = 32, 2**24, 2**25
#: Pixels of a picture that is decoded at the same time as others.
MOST_TOGETHER = 2**21


class PictureSet(msgspec.Struct, frozen=True):
    """The pictures of one set with the numbers of their classes."""

    paths: Sequence[Path]
    labels: Sequence[int]
    reader: "PictureReader"

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Return samples with their labels, some at a time; DataError names the picture that cannot be read."""
        done = 0
        for samples in self.reader.read(self.paths):
            yield samples, np.array(self.labels[done : done + len(samples)], np.int64)
            done += len(samples)


def find_pictures(folder: Path, options: PackOptions) -> SampleSource:
    """Return the pictures of a folder; DataError if its folders are not one for each class."""
    inside = {each.name: each for each in folders_in(folder)}
    train = inside.get(TRAIN_NAME, folder)
    beside = (inside[name] for name in TEST_NAMES if TRAIN_NAME in inside and name in inside)
    test = options.test or next(beside, None)
    names = [each.name for each in folders_in(train) if has_files(each)]
    if len(names) < 2:
        found = f"one class only, {names[0]!r}" if names else "no folder with pictures"
        raise DataError(f"{train}: has {found}: expected a folder of pictures for each of at least two classes")
    reader = PictureReader(options)
    sets = (_set_of(train, names, reader), None if test is None else _set_of(test, names, reader))
    return SampleSource(*sets, len(names), names, reader.notes)


def pictures_to_test(folder: Path, names: Sequence[str], options: PackOptions) -> PictureSet:
    """Return the pictures of a folder, or of the test set in it, whose labels are the places of their class in `names`.

    DataError for a folder that is none of these classes.
    """
    inside = {each.name: each for each in folders_in(folder)}
    beside = (inside[name] for name in TEST_NAMES if TRAIN_NAME in inside and name in inside)
    return _set_of(next(beside, inside.get(TRAIN_NAME, folder)), names, PictureReader(options))


def _set_of(folder: Path, names: Sequence[str], reader: "PictureReader") -> PictureSet:
    if not folder.is_dir():
        raise DataError(f"{folder}: is not there: expected a folder of pictures for each class")
    strange = next((each.name for each in folders_in(folder) if each.name not in names and has_files(each)), None)
    if strange is not None:
        raise DataError(
            f"{folder / strange}: is not a class of the training set: expected one of {', '.join(names[:10])}"
        )
    inside = [list(files_below(folder / name)) if (folder / name).is_dir() else [] for name in names]
    labels = [number for number, paths in enumerate(inside) for _ in paths]
    return PictureSet(list(chain.from_iterable(inside)), labels, reader)


@dataclass
class PictureReader:
    """Decodes pictures into arrays of one size, (channels, height, width) of bytes."""

    options: PackOptions
    #: The first picture, and its size (height, width): as its file has it, and once it was decoded, upright.
    _first: tuple[Path, tuple[int, ...]] | None = None
    #: The pictures with several frames, of which the first is a sample.
    _animated: list[Path] = field(default_factory=list)

    @property
    def _mode(self) -> str:
        return "L" if self.options.grayscale else "RGB"

    def notes(self) -> list[str]:
        """Return a line about the pictures with several frames, if there are any."""
        if not self._animated:
            return []
        first, count = min(self._animated), len(self._animated)
        return [f"{count:,} of the pictures have several frames, such as {one_line(str(first))}: the first one is read"]

    def read(self, paths: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
        """Return pictures in order, some at a time. DataError names one that is not as large as the first."""
        if not paths:
            return
        at_once = max(1, min(AT_ONCE, AT_ONCE_BYTES // self._sample_bytes(paths[0])))
        # Pillow decodes without Python's lock, so that threads do it at the same time: the next ones while these are
        # written. Large ones have a thread for all: what each thread had at most, the allocator keeps for it.
        with ThreadPoolExecutor(cores()) as threads, ThreadPoolExecutor(1) as alone:
            decoded_by = partial(self._decoded, alone)
            chunks = [paths[begin : begin + at_once] for begin in range(0, len(paths), at_once)]
            ahead = [threads.map(decoded_by, chunk) for chunk in chunks[:1]]
            for number, chunk in enumerate(chunks):
                decoded = list(ahead.pop())
                ahead += [threads.map(decoded_by, following) for following in chunks[number + 1 : number + 2]]
                if number == 0 and self._first is not None and self._first[0] == paths[0]:
                    self._first = paths[0], decoded[0].shape[1:]
                for path, each in zip(chunk, decoded, strict=True):
                    with named_faults(path):
                        self._check_size(each.shape[1:])
                yield np.stack(decoded) if len(decoded) > 1 else decoded[0][np.newaxis]

    def sample(self, path: Path) -> NDArray[np.uint8]:
        """Return a picture alone, of the size in the options. DataError if it cannot be read."""
        with open_picture(path, self._mode, self.options.size) as opened:
            return _array(opened, self._mode, self.options.size)

    def _sample_bytes(self, path: Path) -> int:
        """Return how many bytes a sample will have, from what the first picture's file says of it."""
        if self._first is None:
            with open_picture(path, self._mode, self.options.size) as opened:
                self._first = path, (opened.height, opened.width)
        height, width = self.options.size or self._first[1]
        each = height * width * len(self._mode) * (4 if self.options.dtype == "float32" else 1)
        if each > MOST_SAMPLE_BYTES:
            raise DataError(
                f"{one_line(str(path))}: {width} x {height} pixels are a sample of {each:,} bytes: expected at most "
                f"{MOST_SAMPLE_BYTES:,}; scale all pictures with --size, such as --size 224x224"
            )
        return each

    def _check_size(self, size: tuple[int, ...], *, is_upright: bool = True) -> None:
        """Raise DataError, without the path, unless a picture is as large as the first, or may be, once upright."""
        assert self._first is not None
        first, expected = self._first
        is_same = size == expected if is_upright else sorted(size) == sorted(expected)
        if self.options.size is None and not is_same:
            height, width = expected
            raise DataError(
                f"is {size[1]} pixels wide and {size[0]} high, and {one_line(str(first))} is {width} by {height}: "
                f"expected one size; bring all to one with --size {height}x{width}"
            )

    def _decoded(self, alone: Executor, path: Path) -> NDArray[np.uint8]:
        """Return a picture as bytes (channels, height, width), upright, with white behind it. DataError if none."""
        with open_picture(path, self._mode, self.options.size) as opened:
            self._check_size((opened.height, opened.width), is_upright=False)
            if is_animated(opened):
                self._animated.append(path)
            if decoded_pixels(opened) <= MOST_TOGETHER:
                return _array(opened, self._mode, self.options.size)
            return alone.submit(_array, opened, self._mode, self.options.size).result()


def _array(opened: Image.Image, mode: str, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    turn_upright(opened)
    image: Image.Image = opened
    if (deep := deep_pixels(opened)) is not None:
        values, white = deep
        image = Image.fromarray(
            (values // 257 if white > 1 else _rounded(np.multiply(values, 255.0, dtype=np.float32))).astype(np.uint8)
        )
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = on_white(opened)
    image = image.convert(mode) if image.mode != mode else image
    if image is not opened:
        opened.close()  # frees its pixels
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.rint(values, out=values)
