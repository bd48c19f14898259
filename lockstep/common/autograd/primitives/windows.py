"""The windows that options name, the layout of images in memory, and signals as images of one row.

Images have their batch innermost in memory, (channels, height, width, batch), whatever the logical order: windows,
pooling and scatters run over contiguous width × batch instead of over a kernel's few columns.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive, contiguous
from lockstep.common.numerics.operands import Window, Windows

#: An integer for both axes, or one for each of (height, width), as in PyTorch.
Pair = int | Sequence[int]


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
    if window.reach > window.padded:
        raise ValueError(
            f"{name} has windows of {window.reach} elements over an axis of {window.size} with padding "
            f"{window.padding}, expected them to fit: use a smaller kernel or more padding"
        )
    return window


def pooling_windows(
    image: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Windows:
    """Return the windows along (height, width); the stride defaults to the kernel. Raises ValueError if they misfit."""
    kernel = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None else pair(stride, "stride")
    along = (kernel, steps, pair(padding, "padding"), pair(dilation, "dilation"))
    windows = windows_over("pooling", image, *along, ceil_mode)
    for window in windows:
        if window.padding > window.reach // 2:
            raise ValueError(
                f"pooling has padding {window.padding} for a kernel of {window.reach}, expected at most "
                f"{window.reach // 2}: a window must not lie in the padding alone"
            )
    return windows


@lru_cache(maxsize=1024)
def windows_over(
    name: str,
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    is_ceil: bool = False,
) -> Windows:
    """Return the windows along (height, width). Raises ValueError, which begins with `name`, if they misfit."""
    rows, columns = (Window(image[k], kernel[k], stride[k], padding[k], dilation[k], is_ceil) for k in range(2))
    return check_window(rows, name), check_window(columns, name)


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
        result = images.forward(*map(_lifted, (x, *arrays)), **of_one_row(options))
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
        return _flat(derivative(*map(_lifted, arrays), **of_one_row(options), **written))

    return lowered


def _lifted(x: Any) -> Any:
    """Return a signal, or a kernel over one, as an image of one row; anything else as it is."""
    return x[:, :, None] if isinstance(x, np.ndarray) and x.ndim == 3 else x


def _flat(x: Array) -> Array:
    return x[:, :, 0] if x.ndim == 4 else x


def of_one_row(options: dict[str, Any]) -> dict[str, Any]:
    """Return options over signals as those over images of one row."""
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
