"""The matrix products that a training step cannot avoid, and how fast this machine multiplies at best."""

from collections.abc import Iterator

import numpy as np

from common.autograd.graph import no_grad
from common.autograd.tensor import Tensor
from common.nn.layers.convolution import Conv1d, Conv2d
from common.nn.layers.linear import Linear
from common.nn.module import Module
from common.random import Purpose, generator
from common.runtime.clock import Clock

#: Side of the square product that measures the peak: large enough to be bound by arithmetic alone.
PEAK_SIDE = 1024

#: How often the peak is tried; the best counts.
PEAK_TRIES = 10


def step_flops(model: Module, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> int:
    """Return the floating-point operations of all matrix products of forward and backward on `images`.

    Each layer multiplies once forward, once for its weights' gradient, and once for its input's, which the first layer
    does not need.
    """
    forward = list(_forward_flops(model, images))
    return 3 * sum(forward) - (forward[0] if forward else 0)


def _forward_flops(model: Module, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Iterator[int]:
    outputs: list[tuple[Module, tuple[int, ...]]] = []
    with no_grad(), model.observe_outputs(lambda _, module, output: outputs.append((module, output.shape))):
        model(Tensor(images))
    for module, shape in outputs:
        if isinstance(module, Linear | Conv1d | Conv2d):
            # A weight of (out, …) is read once for each output value: 2 operations for each value below `out`.
            yield 2 * int(np.prod(shape)) * int(np.prod(module.weight.shape[1:]))


def gemm_peak(clock: Clock) -> float:
    """Return the floating-point operations a second of a large float32 product, the best of some tries."""
    rng = generator(0, Purpose.CANARY)
    left, right = (rng.standard_normal((PEAK_SIDE, PEAK_SIDE), dtype=np.float32) for _ in range(2))
    product = np.empty_like(left)
    best = float("inf")
    for _ in range(PEAK_TRIES):
        began = clock.now()
        np.matmul(left, right, out=product)
        best = min(best, clock.now() - began)
    return 2.0 * PEAK_SIDE**3 / best
