"""A dataset that a run is through with in a moment: images of MNIST's shape whose class is a bright row."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.common.numerics.random import Purpose, generator

Pair = tuple[NDArray[np.uint8], NDArray[np.int64]]


def tiny_arrays(train: int = 160, test: int = 40) -> tuple[Pair, Pair]:
    """Return training and test arrays: images uint8 (n, 28, 28), labels int64 (n,) of ten classes."""
    return _part(train, 0), _part(test, 1)


def write_tiny(folder: Path) -> Path:
    """Write the dataset into a folder; return the path of its .npz."""
    (x_train, y_train), (x_test, y_test) = tiny_arrays()
    path = folder / "tiny.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def _part(size: int, at: int) -> Pair:
    images = generator(0, Purpose.CANARY, at=at).integers(0, 100, size=(size, 28, 28), dtype=np.uint8)
    labels = np.arange(size, dtype=np.int64) % 10
    images[np.arange(size), 2 * labels + 4] = 255
    return images, labels
