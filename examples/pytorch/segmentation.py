"""A U-Net of PyTorch that names the class of each pixel: background, disc or square. Outlines have none.

    python examples/pytorch/segmentation.py
    lockstep train --job examples/pytorch/segmentation.toml

The labels are dense: (n, 32, 32), one for each pixel. Pixels with the label 255 are left out of the loss and of the
accuracy, since `ignore_index = 255` in the job (Ronneberger et al., "U-Net", 2015, is the net).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

TRAIN, TEST, SIZE = 600, 200, 32

#: What is nothing: not counted, and not trained on.
IGNORED = 255


def convolutions(inputs: int, outputs: int) -> nn.Module:
    """Return two convolutions that keep height and width."""
    parts = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*parts, nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Images (n, 1, 32, 32) to logits (n, 3, 32, 32): down twice, and up again next to what was seen on the way."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = convolutions(1, width), convolutions(width, 2 * width)
        self.lowest = convolutions(2 * width, 4 * width)
        self.up_second = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.back_second = convolutions(4 * width, 2 * width)
        self.up_first = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.back_first = convolutions(2 * width, width)
        self.head = nn.Conv2d(width, 3, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        first = self.first(x)
        second = self.second(self.pool(first))
        lowest = self.lowest(self.pool(second))
        x = self.back_second(torch.cat([self.up_second(lowest), second], 1))
        return self.head(self.back_first(torch.cat([self.up_first(x), first], 1)))


def build() -> nn.Module:
    """Return a new U-Net."""
    return UNet()


def drawn(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (n, 32, 32) of a disc and a square in noise, and the class of each pixel."""
    rng = np.random.Generator(np.random.Philox(seed))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    images, labels = rng.normal(90, 40, (count, SIZE, SIZE)), np.zeros((count, SIZE, SIZE), np.uint8)
    for image, label in zip(images, labels, strict=True):
        for kind in (1, 2):
            row, column, radius = *rng.integers(6, SIZE - 6, 2), rng.integers(4, 8)
            down, right = np.abs(rows - row), np.abs(columns - column)
            distance = np.hypot(down, right) if kind == 1 else np.maximum(down, right)
            image[distance <= radius] += 70
            label[distance <= radius] = kind
            label[np.abs(distance - radius) < 0.6] = IGNORED
    return np.clip(images, 0, 255).astype(np.uint8), labels


def main(to: Path) -> None:
    """Write the arrays."""
    (x_train, y_train), (x_test, y_test) = drawn(TRAIN, seed=0), drawn(TEST, seed=1)
    to.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(to, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    print(f"wrote {to}: {TRAIN} and {TEST} images of {SIZE} by {SIZE}, {np.mean(y_test == 0):.1%} background")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/outlines.npz"))
