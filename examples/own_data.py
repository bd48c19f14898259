"""Your own images, as a folder of IDX files and as an .npz: the digits of a pocket calculator, askew and in noise.

    python examples/own_data.py
    lockstep train --model lenet --data runs/segments --epochs 6
    lockstep train --model lenet --data runs/segments.npz --epochs 6

Both hold the same images, so that both runs end with the same weights.
"""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAIN, TEST = 6000, 1000

#: Rows and columns of the seven segments in a field of 20 by 12, and which of them each digit has.
SEGMENTS = (
    (slice(0, 2), slice(1, 11)),
    (slice(1, 10), slice(10, 12)),
    (slice(10, 19), slice(10, 12)),
    (slice(18, 20), slice(1, 11)),
    (slice(10, 19), slice(0, 2)),
    (slice(1, 10), slice(0, 2)),
    (slice(9, 11), slice(1, 11)),
)
DIGITS = ("012345", "12", "01346", "01236", "1256", "02356", "023456", "012", "0123456", "012356")

Images = NDArray[np.uint8]


def main(to: Path) -> None:
    """Write the folder, and the .npz next to it."""
    (x_train, y_train), (x_test, y_test) = drawn(TRAIN, seed=0), drawn(TEST, seed=1)
    to.mkdir(parents=True, exist_ok=True)
    for name, array in (
        ("train-images-idx3-ubyte", x_train),
        ("train-labels-idx1-ubyte", y_train),
        ("t10k-images-idx3-ubyte", x_test),
        ("t10k-labels-idx1-ubyte", y_test),
    ):
        (to / f"{name}.gz").write_bytes(gzip.compress(idx(array), compresslevel=6))
    # Labels of an .npz are integers of any width.
    np.savez_compressed(to.with_suffix(".npz"), x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    print(f"wrote {to} and {to.with_suffix('.npz')}: {TRAIN:,} and {TEST:,} images of 28 by 28")


def drawn(count: int, seed: int) -> tuple[Images, NDArray[np.uint8]]:
    """Return images (n, 28, 28) and their digits (n,)."""
    rng = np.random.Generator(np.random.Philox(seed))
    labels = rng.integers(0, 10, count, dtype=np.uint8)
    return np.stack([image(int(label), rng) for label in labels]), labels


def image(digit: int, rng: np.random.Generator) -> Images:
    """Return one digit, leaning to the right, somewhere in its frame, some of it hidden by noise."""
    field = np.zeros((20, 12))
    for segment in DIGITS[digit]:
        field[SEGMENTS[int(segment)]] = rng.uniform(0.4, 1.0)
    frame = np.zeros((28, 28))
    down, right, lean = rng.integers(0, 9), rng.integers(0, 13), rng.uniform(0.0, 0.2)
    for row in range(20):
        shift = round(lean * (19 - row))
        frame[down + row, right + shift : right + shift + 12] = field[row]
    return (255 * np.clip(frame + rng.normal(0, 0.2, frame.shape), 0, 1)).astype(np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    """Return unsigned bytes as IDX: a magic number with the dimensions, their sizes, the values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape) + array.tobytes()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/segments"))
