"""A convolutional net with BatchNorm and dropout, for images of 28 by 28 pixels: above 99.3 % on MNIST.

lockstep train --job examples/batchnorm_cnn.toml
"""

from lockstep import nn


def build() -> nn.Module:
    """Return a new model: images (n, 1, 28, 28) to logits (n, 10)."""
    return nn.Sequential(
        *convolution(1, 16),
        *convolution(16, 16),
        nn.MaxPool2d(2),  # (n, 16, 14, 14)
        *convolution(16, 32),
        nn.MaxPool2d(2),  # (n, 32, 7, 7)
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 7 * 7, 128, bias=False),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, 10),
    )


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return a convolution that keeps the size; BatchNorm follows it, so it needs no bias."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
