"""Images with their batch innermost in memory: (channels, height, width, batch), whatever the logical order.

Windows, pooling and scatters then run over contiguous width × batch instead of over a kernel's few columns.
"""

from collections.abc import Iterator

from lockstep.common.autograd.primitives.memory import contiguous
from lockstep.common.autograd.primitives.primitive import Array

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
