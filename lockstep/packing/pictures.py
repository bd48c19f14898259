"""Folders of pictures as sources, with a folder for each class; one of two files that import Pillow."""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.common.runtime.environment import cores
from lockstep.packing.files import files_below, folders_in
from lockstep.packing.options import PackOptions, SampleSource

#: What a folder with the test set's pictures may be called, next to `train`.
TRAIN_NAME, TEST_NAMES = "train", ("test", "val", "valid", "validation")
#: Most pixels of a picture: 100 megapixels take 300 MB.
MOST_PIXELS = 100_000_000
#: Pictures that are decoded at once.
AT_ONCE = 32


@dataclass(frozen=True)
class PictureSet:
    """The pictures of one set with the numbers of their classes."""

    paths: Sequence[Path]
    labels: Sequence[int]
    reader: "PictureReader"

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Return samples with their labels, some at a time; DataError names the picture that cannot be read."""
        begins = range(0, len(self.paths), AT_ONCE)
        for begin, samples in zip(begins, self.reader.read(self.paths), strict=True):
            yield samples, np.array(self.labels[begin : begin + AT_ONCE], np.int64)


def find_pictures(folder: Path, options: PackOptions) -> SampleSource:
    """Return the pictures of a folder; DataError if its folders are not one for each class."""
    inside = {each.name: each for each in folders_in(folder)}
    train = inside.get(TRAIN_NAME, folder)
    beside = (inside[name] for name in TEST_NAMES if TRAIN_NAME in inside and name in inside)
    test = options.test or next(beside, None)
    names = [each.name for each in folders_in(train) if files_below(each)]
    if len(names) < 2:
        found = f"one class only, {names[0]!r}" if names else "no folder with pictures"
        raise DataError(f"{train}: has {found}: expected a folder of pictures for each of at least two classes")
    reader = PictureReader(options)
    sets = (_set_of(train, names, reader), None if test is None else _set_of(test, names, reader))
    return SampleSource(*sets, len(names), names)


def _set_of(folder: Path, names: Sequence[str], reader: "PictureReader") -> PictureSet:
    if not folder.is_dir():
        raise DataError(f"{folder}: is not there: expected a folder of pictures for each class")
    strange = next((each.name for each in folders_in(folder) if each.name not in names and files_below(each)), None)
    if strange is not None:
        raise DataError(
            f"{folder / strange}: is not a class of the training set: expected one of {', '.join(names[:10])}"
        )
    inside = [files_below(folder / name) if (folder / name).is_dir() else [] for name in names]
    labels = [number for number, paths in enumerate(inside) for _ in paths]
    return PictureSet(list(chain.from_iterable(inside)), labels, reader)


@dataclass
class PictureReader:
    """Decodes pictures into arrays of one size, (channels, height, width) of bytes."""

    options: PackOptions
    #: The size of the first picture, if no other was asked for, and its path.
    _first: tuple[tuple[int, int], Path] | None = None

    def read(self, paths: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
        """Return pictures in order, `AT_ONCE` at a time."""
        # Pillow decodes without Python's lock, so that threads do it at the same time: the next ones while these are
        # written.
        with ThreadPoolExecutor(cores()) as threads:
            chunks = [paths[begin : begin + AT_ONCE] for begin in range(0, len(paths), AT_ONCE)]
            ahead = [threads.map(self._decoded, chunk) for chunk in chunks[:1]]
            for number, chunk in enumerate(chunks):
                decoded = list(ahead.pop())
                ahead += [threads.map(self._decoded, following) for following in chunks[number + 1 : number + 2]]
                for path, each in zip(chunk, decoded, strict=True):
                    self._check_size(path, each)
                yield np.stack(decoded)

    def _check_size(self, path: Path, decoded: NDArray[np.uint8]) -> None:
        size = (decoded.shape[1], decoded.shape[2])
        if self._first is None:
            self._first = (size, path)
        elif size != self._first[0]:
            (height, width), first = self._first
            raise DataError(
                f"{path}: is {size[1]} pixels wide and {size[0]} high, and {first} is {width} by {height}: expected "
                f"one size; bring all to one with --size {height}x{width}"
            )

    def _decoded(self, path: Path) -> NDArray[np.uint8]:
        """Return a picture as bytes (channels, height, width), upright, with white behind it. DataError if none."""
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise DataError(f"{path}: {opened.width} x {opened.height} pixels: expected at most {MOST_PIXELS}")
                return _array(opened, self.options)
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            reason = (getattr(error, "strerror", None) or one_line(str(error), 80)).partition(" <")[0]
            raise DataError(f"{path}: is not a picture that can be read ({reason}): repair or remove it") from None


def _array(opened: Image.Image, options: PackOptions) -> NDArray[np.uint8]:
    mode = "L" if options.grayscale else "RGB"
    if options.size is not None and opened.format == "JPEG" and opened.getexif().get(0x0112, 1) == 1:
        # The decoder leaves out what would be averaged away: at least twice as many pixels stay as are asked for.
        opened.draft(mode, (2 * options.size[1], 2 * options.size[0]))
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I") or image.mode == "F":
        # 16 bits or more, of which Pillow's conversion would keep the lowest eight.
        deep = np.asarray(image, np.float64)
        image = Image.fromarray(np.clip(deep / (257.0 if image.mode != "F" else 1.0), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    image = image.convert(mode) if image.mode != mode else image
    if options.size is not None and image.size != (options.size[1], options.size[0]):
        image = image.resize((options.size[1], options.size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
