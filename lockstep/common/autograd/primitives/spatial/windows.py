"""Where the windows of a kernel lie on an image. Computes nothing on arrays."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import msgspec
import numpy as np

#: An integer for both axes, or one for each of (height, width), as in PyTorch.
Pair = int | Sequence[int]

#: One offset of all windows: an index of the elements there, and one of the windows that see an element there.
Tap = tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]


class Window(msgspec.Struct, frozen=True):
    """How the windows of one kernel lie along one axis of `size` elements."""

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

    @property
    def is_disjoint(self) -> bool:
        """Tell whether no element belongs to two windows."""
        return self.kernel == 1 or (self.dilation == 1 and self.stride >= self.kernel)

    @property
    def is_partition(self) -> bool:
        """Tell whether each element belongs to exactly one window."""
        is_gapless = self.stride == self.kernel and self.dilation == 1 and self.padding == 0
        return is_gapless and self.count * self.kernel == self.size

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
