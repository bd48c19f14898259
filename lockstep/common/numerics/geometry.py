"""How the windows of a convolution lie, and whether arrays lie in memory as a kernel needs them. Computes nothing."""

from typing import NamedTuple


class Geometry(NamedTuple):
    """The windows of a convolution over images that are padded already, along (height, width)."""

    groups: int
    stride: tuple[int, int]
    dilation: tuple[int, int]


class PoolWindows(NamedTuple):
    """The windows of a pool over images, along (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
