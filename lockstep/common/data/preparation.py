"""Turns stored samples into a model's input: scaled, normalised and, in training, shifted at random."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Self

import msgspec
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lockstep.common.data.columns import Real, Scale
from lockstep.common.data.dataset import Dataset
from lockstep.common.data.mapped import Samples
from lockstep.common.errors import DataError
from lockstep.common.numerics.sums import halved_sum

#: Values per block when constants are computed: bounds the memory, and fixes the order of the sum.
BLOCK = 1 << 20
#: Of them, how many bytes are added at once where the order does not matter: as floats they fit into the cache.
_IN_CACHE = 1 << 15


class Preparation(msgspec.Struct, frozen=True, dict=True):
    """The same constants for every sample of a run, the test set's too."""

    #: The mean of the training set's values, where the bytes 0 to 255 count as 0 to 1.
    mean: Real
    #: The deviation of the same values.
    std: Scale
    #: Most pixels that an image may move vertically and horizontally if a generator is given.
    max_shift: int = 0
    #: Of several inputs, that of each by its name; empty if samples are one array.
    inputs: Mapping[str, "Preparation"] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, train: Dataset, max_shift: int = 0) -> Self:
        """Return the constants of `train`. Raises DataError if it has no rows and columns to shift along."""
        if max_shift < 0 or (max_shift and train.images.ndim != 4):
            raise DataError(
                f"shifts of {max_shift!r} pixels over samples of shape {train.sample_shape!r}: expected 0, or more "
                "over images (channels, height, width)"
            )
        if max_shift and max_shift >= min(train.sample_shape[1:]):
            raise DataError(
                f"max_shift = {max_shift!r} shifts images of shape {train.sample_shape!r} out of sight: expected less "
                f"than {min(train.sample_shape[1:])}"
            )
        if names := train.images.dtype.names:
            whole = train.images[:]
            parts = {name: _alone(whole[name]) for name in names}
            return cls(0.0, 1.0, inputs={name: cls(*found) for name, found in parts.items()})
        if train.is_tokens:
            return cls(0.0, 1.0)
        images = train.images
        moments = train.moments or moments_of(lambda: value_blocks(images, BLOCK), images.dtype, images.size)
        return cls(*moments, max_shift)

    def images(
        self, raw: NDArray[Any], rng: np.random.Generator | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Return the samples `raw`, uint8 or float32 (n, …), as float32 of the same shape: in `out`, or a new array.

        Tokens stay as they are. With `rng`, each image (channels, height, width) moves by its own (dy, dx); what moves
        in is 0 in `raw`.
        """
        if raw.dtype.names:
            return self._records(raw, out)
        if rng is not None and self.max_shift:
            raw = _shifted(raw, self.max_shift, rng)
        if raw.dtype == np.int32:
            if out is None:
                return raw
            np.copyto(out, raw)
            return out
        prepared: NDArray[Any] = np.empty(raw.shape, np.float32) if out is None else out
        of_byte, of_float, offset = self._constants
        if raw.dtype == np.uint8:
            # In two passes, since `multiply` buffers what it has to turn into floats: 13.0 instead of 14.9 us for 128
            # images of MNIST.
            np.copyto(prepared, raw)
            np.multiply(prepared, of_byte, out=prepared)
        else:
            np.multiply(raw, of_float, dtype=np.float32, out=prepared)
        np.subtract(prepared, offset, out=prepared)
        return prepared

    def _records(self, raw: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
        """Return records of prepared inputs: a plain preparation is that of each of them."""
        fields = [(name, raw.dtype[name]) for name in raw.dtype.names or ()]
        types = [
            (name, np.dtype(np.int32 if kind.base == np.int32 else np.float32), kind.shape) for name, kind in fields
        ]
        prepared = np.empty(raw.shape, types) if out is None else out
        for name, _ in fields:
            self.inputs.get(name, _AS_IT_IS).images(raw[name], out=prepared[name])
        return prepared

    @cached_property
    def _constants(self) -> list[NDArray[np.float32]]:
        """The factors of a byte and of a float, and the subtracted numbers."""
        # As arrays, which NumPy begins with sooner than with numbers.
        numbers = (1.0 / (255.0 * self.std), 1.0 / self.std, self.mean / self.std)
        return [np.array(number, np.float32) for number in numbers]


#: Bytes become numbers from 0 to 1, and nothing else changes.
_AS_IT_IS = Preparation(0.0, 1.0)


def _alone(values: NDArray[Any]) -> tuple[float, float]:
    """Return the mean and the deviation of one of several inputs; numbers that count something stay as they are."""
    if values.dtype == np.int32:
        return 0.0, 1.0
    flat = np.ascontiguousarray(values).reshape(-1)
    return moments_of(lambda: iter(np.split(flat, range(BLOCK, flat.size, BLOCK))), flat.dtype, flat.size)


def _shifted(raw: NDArray[Any], most: int, rng: np.random.Generator) -> NDArray[Any]:
    count, _, height, width = raw.shape
    down, right = rng.integers(-most, most + 1, size=(2, count))
    padded = np.pad(raw, ((0, 0), (0, 0), (most, most), (most, most)))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))  # (n, c, 2·most+1, 2·most+1, h, w)
    shifted: NDArray[Any] = windows[np.arange(count), :, most - down, most - right]
    return shifted


#: Gives all values of some samples in order, in blocks of `BLOCK` values; called once for each time they are needed.
ValueBlocks = Callable[[], Iterator[NDArray[Any]]]


def moments_of(blocks: ValueBlocks, dtype: np.dtype[Any], count: int) -> tuple[float, float]:
    """Return the constants of `count` values, bytes or float32: their mean, and their deviation, 1 if that is 0."""
    mean, variance = (_moments_of_bytes if dtype == np.uint8 else _moments_of_floats)(blocks, count)
    # If all values are equal there is nothing to scale; scikit-learn's StandardScaler leaves them alone as well.
    return mean, math.sqrt(variance) or 1.0


def value_blocks(images: Samples, count: int) -> Iterator[NDArray[Any]]:
    """Return all values in order, so many at a time, (count,)."""
    each = images.size // len(images)
    for begin in range(0, images.size, count):
        end = min(begin + count, images.size)
        low, high = begin // each, -(-end // each)
        yield images[low:high].reshape(-1)[begin - low * each : end - low * each]


def _moments_of_bytes(blocks: ValueBlocks, count: int) -> tuple[float, float]:
    """Return mean and variance of bytes / 255, exact but for the last division."""
    total = squares = 0
    for block in blocks():
        for start in range(0, len(block), _IN_CACHE):
            # Whole numbers below 2**53 add up exactly in float64, in any order: so BLAS may do it.
            values = block[start : start + _IN_CACHE].astype(np.float64)
            total += int(values.sum())
            squares += int(np.dot(values, values))
    return total / (255 * count), (count * squares - total * total) / (255 * count) ** 2


def _moments_of_floats(blocks: ValueBlocks, count: int) -> tuple[float, float]:
    # Not `sum`: since Python 3.12 that compensates, so that its bits depend on the version.
    mean = math.fsum(halved_sum(block) for block in blocks()) / count
    deviations = math.fsum(halved_sum(np.square(block.astype(np.float64) - mean)) for block in blocks())
    return mean, deviations / count
