"""How the windows of convolutions and pools lie. Computes nothing."""

from typing import NamedTuple


class Geometry(NamedTuple):
    """The windows of a convolution over padded images, along (height, width)."""

    groups: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    #: What images have been padded with at each side, of which there is no gradient.
    padding: tuple[int, int] = (0, 0)


class PoolWindows(NamedTuple):
    """The windows of a pool over images, along (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
