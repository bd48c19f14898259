"""The windows of a kernel on an image, the layout of images in memory, and signals as images of one row.

Images have their batch innermost in memory, (channels, height, width, batch), whatever the logical order: windows,
pooling and scatters run over contiguous width × batch instead of over a kernel's few columns.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import msgspec
import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive, contiguous

#: An integer for both axes, or one for each of (height, width), as in PyTorch.
Pair = int | Sequence[int]

#: One offset of all windows: an index of the elements there, and one of the windows that see an element there.
Tap = tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]


class Window(msgspec.Struct, frozen=True):
    """The windows of one kernel along one axis of `size` elements."""

    size: int
    kernel: int
    stride: int
    padding: int = 0
    dilation: int = 1

    @property
    def reach(self) -> int:
        """The number of elements from the first to the last that one window sees."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def count(self) -> int:
        """The number of windows; the last elements are skipped if the stride does not divide (PyTorch's floor)."""
        return (self.size + 2 * self.padding - self.reach) // self.stride + 1

    def padded(self) -> "Window":
        """The same windows over an input to which the padding has been added."""
        return Window(self.size + 2 * self.padding, self.kernel, self.stride, 0, self.dilation)

    def tap(self, offset: int) -> tuple[slice, slice]:
        """Return (elements, windows): which elements are seen at `offset` of a window, and by which windows.

        Padding is left out, so that it need not exist in memory.
        """
        start = offset * self.dilation - self.padding
        first = max(0, -(start // self.stride))
        last = max(first, min(self.count, (self.size - 1 - start) // self.stride + 1))
        begin = start + first * self.stride
        return slice(begin, begin + (last - first) * self.stride, self.stride), slice(first, last)


def pair(value: Pair, name: str) -> tuple[int, int]:
    """Turn an integer or two into two; raise ValueError for anything else."""
    if isinstance(value, int | np.integer):
        return int(value), int(value)
    if len(value) != 2:
        raise ValueError(f"{name} is {value!r}, expected an integer or two of them (height, width)")
    return int(value[0]), int(value[1])


def single(value: Pair, name: str) -> int:
    """Turn an integer, or a sequence of one, into an integer; raise ValueError for anything else."""
    if isinstance(value, int | np.integer):
        return int(value)
    if len(value) != 1:
        raise ValueError(f"{name} is {value!r}, expected one integer")
    return int(value[0])


def check_window(window: Window, name: str) -> Window:
    """Return `window` if it fits its input; raise ValueError, naming the axis's values, if it does not."""
    if min(window.kernel, window.stride, window.dilation) < 1 or window.padding < 0:
        raise ValueError(
            f"{name} has kernel {window.kernel}, stride {window.stride}, dilation {window.dilation} and padding "
            f"{window.padding}, expected the first three to be at least 1 and the last at least 0"
        )
    if window.count < 1:
        raise ValueError(
            f"{name} has windows of {window.reach} elements over an axis of {window.size} with padding "
            f"{window.padding}, expected them to fit: use a smaller kernel or more padding"
        )
    return window


def pooling_windows(
    image: tuple[int, ...], kernel_size: Pair, stride: Pair | None, padding: Pair
) -> tuple[Window, Window]:
    """Return the windows along (height, width); the stride defaults to the kernel. Raises ValueError if they misfit."""
    kernel = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None else pair(stride, "stride")
    return _pooling_windows(image, kernel, steps, pair(padding, "padding"))


@lru_cache(maxsize=1024)
def _pooling_windows(
    image: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[Window, Window]:
    for size, border in zip(kernel, padding, strict=True):
        if border > size // 2:
            raise ValueError(
                f"pooling has padding {border} for a kernel of {size}, expected at most {size // 2}: "
                "a window must not lie in the padding alone"
            )
    rows, columns = (Window(image[k], kernel[k], stride[k], padding[k]) for k in range(2))
    return check_window(rows, "pooling"), check_window(columns, "pooling")


@lru_cache(maxsize=1024)
def taps(rows: Window, columns: Window) -> tuple[Tap, ...]:
    """Return the offsets of a window in row-major order, as indices into (channels, height, width, batch)."""
    whole, along = slice(None), ([window.tap(offset) for offset in range(window.kernel)] for window in (rows, columns))
    return tuple(((whole, y, x), (whole, seen_y, seen_x)) for (y, seen_y), (x, seen_x) in product(*along))


#: The working set of one block: half of a second-level cache of 2 MiB, all of one of 1 MiB.
BLOCK_BYTES = 1 << 20


def check_images(x: Array, name: str) -> None:
    """Raise ValueError unless `x` is (batch, channels, height, width)."""
    if x.ndim != 4:
        raise ValueError(
            f"{name} got an input of shape {x.shape!r}, expected (batch, channels, height, width): "
            "reshape it to four axes"
        )


def batch_innermost(x: Array) -> Array:
    """Return (channels, height, width, batch), contiguous: a view where memory is so already, else a copy."""
    return contiguous(x.transpose(1, 2, 3, 0))


def batch_first(x: Array) -> Array:
    """Return the logical (batch, channels, height, width) view of a (channels, height, width, batch) array."""
    return x.transpose(3, 0, 1, 2)


def channel_blocks(x: Array) -> Iterator[slice]:
    """Cut the first axis of `x` into blocks whose elements stay in cache while several passes go over them."""
    channels = x.shape[0]
    step = max(1, BLOCK_BYTES * channels // max(1, x.nbytes))
    for first in range(0, channels, step):
        yield slice(first, first + step)


#: The options across the only row.
_ACROSS = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "output_size": 1}


def over_signals(name: str, images: Primitive, check: Callable[..., None] | None = None) -> Primitive:
    """Return the primitive over signals; its options are those over images, one integer each.

    `check` raises for arguments that the primitive over images would call by another name.
    """
    assert isinstance(images.derivatives, tuple)

    def forward(x: Array, *arrays: Array | None, **options: Any) -> Any:
        _check_signals(x, name)
        if check is not None:
            check(*arrays)
        result = images.forward(*map(_lifted, (x, *arrays)), **_of_one_row(options))
        return (result[0][:, :, 0], result[1]) if images.keeps else result[:, :, 0]

    return Primitive(
        name,
        forward,
        tuple(derivative and _lowered(derivative) for derivative in images.derivatives),
        keeps=images.keeps,
        reads=images.reads,
        writes=images.writes,
        is_opaque=images.is_opaque,
    )


def _lowered(derivative: Callable[..., Array]) -> Callable[..., Array]:
    """Return the derivative over signals of one over images."""

    def lowered(*arrays: Any, out: Array | None = None, **options: Any) -> Array:
        written = {} if out is None else {"out": _lifted(out)}
        return _flat(derivative(*map(_lifted, arrays), **_of_one_row(options), **written))

    return lowered


def _lifted(x: Any) -> Any:
    """Return a signal, or a kernel over one, as an image of one row; anything else as it is."""
    return x[:, :, None] if isinstance(x, np.ndarray) and x.ndim == 3 else x


def _flat(x: Array) -> Array:
    return x[:, :, 0] if x.ndim == 4 else x


def _of_one_row(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (_ACROSS[name], single(value, name)) if name in _ACROSS and value is not None else value
        for name, value in options.items()
    }


def _check_signals(x: Array, name: str) -> None:
    """Raise ValueError unless `x` is (batch, channels, length)."""
    if x.ndim != 3:
        raise ValueError(
            f"{name} got an input of shape {x.shape!r}, expected (batch, channels, length): reshape it to three axes"
        )
