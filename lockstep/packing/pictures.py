"""Folders of pictures as sources, with a folder for each class."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.common.runtime.environment import cores
from lockstep.packing.files import files_below, folders_in, has_files
from lockstep.packing.options import PackOptions, SampleSource
from lockstep.packing.picture_files import decoded_pixels, deep_pixels, on_white, open_picture, turn_upright

#: What a folder with the test set's pictures may be called, next to `train`.
TRAIN_NAME, TEST_NAMES = "train", ("test", "val", "valid", "validation")
#: Pictures that are held at once at most, and bytes of them, unless one alone has more; and the most that one may have.
AT_ONCE, AT_ONCE_BYTES, MOST_SAMPLE_BYTES = 32, 2**24, 2**25
#: Pixels of a picture that is decoded at the same time as others.
MOST_TOGETHER = 2**21


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
    return SampleSource(*sets, len(names), names)


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

    @property
    def _mode(self) -> str:
        return "L" if self.options.grayscale else "RGB"

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
                    self._check_size(path, each.shape[1:])
                yield np.stack(decoded) if len(decoded) > 1 else decoded[0][np.newaxis]

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

    def _check_size(self, path: Path, size: tuple[int, ...], *, is_upright: bool = True) -> None:
        """Raise DataError unless a picture is as large as the first; one that is not upright may lie on its side."""
        assert self._first is not None
        first, expected = self._first
        is_same = size == expected if is_upright else sorted(size) == sorted(expected)
        if self.options.size is None and not is_same:
            height, width = expected
            raise DataError(
                f"{one_line(str(path))}: is {size[1]} pixels wide and {size[0]} high, and {one_line(str(first))} is "
                f"{width} by {height}: expected one size; bring all to one with --size {height}x{width}"
            )

    def _decoded(self, alone: Executor, path: Path) -> NDArray[np.uint8]:
        """Return a picture as bytes (channels, height, width), upright, with white behind it. DataError if none."""
        with open_picture(path, self._mode, self.options.size) as opened:
            self._check_size(path, (opened.height, opened.width), is_upright=False)
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
