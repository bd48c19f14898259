"""The models that ship with Lockstep. All but `dense` and `conv` map images (n, 1, 28, 28) to logits (n, 10)."""

import math
from collections.abc import Callable, Sequence

from lockstep.common.nn.layers.activations import ReLU
from lockstep.common.nn.layers.containers import Sequential
from lockstep.common.nn.layers.convolution import Conv2d
from lockstep.common.nn.layers.linear import Flatten, Linear
from lockstep.common.nn.layers.pooling import AvgPool2d, MaxPool2d
from lockstep.common.nn.module import Module


def linear() -> Sequential:
    """Return a model 784-10, softmax regression with 7,850 parameters: (n, 1, 28, 28) to (n, 10)."""
    return Sequential(Flatten(), Linear(784, 10))


def mlp() -> Sequential:
    """Return a model 784-512-256-10 with ReLU and 535,818 parameters: (n, 1, 28, 28) to (n, 10)."""
    return Sequential(Flatten(), Linear(784, 512), ReLU(), Linear(512, 256), ReLU(), Linear(256, 10))


def lenet() -> Sequential:
    """Return LeNet: 6 and 16 maps of 5×5, each with ReLU and 2×2 max-pooling, then 120-84-10; 61,706 parameters.

    Shapes are (n, 1, 28, 28) to (n, 10). After LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to
    document recognition", Proc. IEEE 86, 1998, with today's ReLU and max-pooling in place of scaled tanh and trained
    averages.
    """
    return Sequential(
        *(Conv2d(1, 6, 5, padding=2), ReLU(), MaxPool2d(2)),
        *(Conv2d(6, 16, 5), ReLU(), MaxPool2d(2)),
        Flatten(),
        *(Linear(400, 120), ReLU()),
        *(Linear(120, 84), ReLU()),
        Linear(84, 10),
    )


def cnn() -> Sequential:
    """Return a net with 32 and 64 maps of 3×3, each with ReLU and 2×2 max-pooling, then 128-10; 421,642 parameters.

    Shapes are (n, 1, 28, 28) to (n, 10).
    """
    return Sequential(
        *(Conv2d(1, 32, 3, padding=1), ReLU(), MaxPool2d(2)),
        *(Conv2d(32, 64, 3, padding=1), ReLU(), MaxPool2d(2)),
        Flatten(),
        *(Linear(3136, 128), ReLU()),
        Linear(128, 10),
    )


def dense(
    sample_shape: Sequence[int], hidden: Sequence[int], outputs: int, activation: Callable[[], Module] = ReLU
) -> Sequential:
    """Return linear layers with an activation after each hidden one: from (n, ...) with `sample_shape` to (n, outputs).

    Raises ValueError for a size below 1.
    """
    layers: list[Module] = [Flatten()] if len(sample_shape) > 1 else []
    inputs = math.prod(sample_shape)
    for size in hidden:
        layers += [Linear(inputs, size), activation()]
        inputs = size
    return Sequential(*layers, Linear(inputs, outputs))


#: Pictures whose shorter side has twice as many pixels are made smaller first: to at least as many.
SMALLER = 32
#: The least pixels of the shorter side that are pooled.
POOLED = 8


def conv(sample_shape: Sequence[int], maps: Sequence[int], outputs: int) -> Sequential:
    """Return convolutions of 3×3 with so many maps, each with ReLU and 2×2 max-pooling, and a linear layer.

    Shapes are (n, channels, height, width) with `sample_shape` to (n, outputs), for any size: large pictures are
    averaged to 32 to 63 pixels first, and small ones are not pooled. Raises ValueError for a size below 1.
    """
    channels, height, width = sample_shape
    layers: list[Module] = []

    def pool(size: int, kind: Callable[[int], Module]) -> None:
        nonlocal height, width
        layers.append(kind(size))
        height, width = height // size, width // size

    if (times := min(height, width) // SMALLER) > 1:
        pool(times, AvgPool2d)
    for count in maps:
        layers += [Conv2d(channels, count, 3, padding=1), ReLU()]
        channels = count
        if min(height, width) >= POOLED:
            pool(2, MaxPool2d)
    return Sequential(*layers, Flatten(), Linear(channels * height * width, outputs))


#: The other names that a job may give as its model.
MODELS: dict[str, Callable[[], Sequential]] = {"linear": linear, "mlp": mlp, "lenet": lenet, "cnn": cnn}
