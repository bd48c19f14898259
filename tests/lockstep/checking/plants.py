"""Mistakes as people make them, each planted into a net that is otherwise healthy."""

from collections.abc import Callable

import numpy as np

from lockstep import Tensor, nn
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.tensor import apply


def net(activation: nn.Module, inputs: int = 784) -> nn.Sequential:
    """Return a small net with a given activation, the same one in each call."""
    nn.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 32), activation, nn.Linear(32, 10))


class Elementwise(nn.Module):
    """A function with a derivative of one's own, `(gradient, y, x) -> gradient`."""

    def __init__(self, forward: Callable[[Array], Array], derivative: Callable[[Array, Array, Array], Array]) -> None:
        super().__init__()
        self.primitive = Primitive("own", forward, (derivative,))

    def forward(self, x: Tensor) -> Tensor:
        return apply(self.primitive, x)


def tanh_with_derivative(derivative: Callable[[Array, Array, Array], Array]) -> nn.Sequential:
    return net(Elementwise(np.tanh, derivative))


class OwnLinear(nn.Linear):
    """A linear layer whose derivatives are given."""

    def __init__(self, weight: Callable[[Array, Array], Array], bias: Callable[[Array], Array]) -> None:
        super().__init__(32, 32)
        self.primitive = Primitive(
            "own",
            lambda x, w, b: x @ w.T + b,
            (lambda g, _, x, w, b: g @ w, lambda g, _, x, w, b: weight(g, x), lambda g, _, x, w, b: bias(g)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return apply(self.primitive, x, self.weight, self.bias)


def own_linear(weight: Callable[[Array, Array], Array], bias: Callable[[Array], Array]) -> nn.Sequential:
    nn.manual_seed(1)
    layers = (nn.Linear(784, 32), nn.ReLU(), OwnLinear(weight, bias), nn.ReLU(), nn.Linear(32, 10))
    return nn.Sequential(nn.Flatten(), *layers)


class LeavesTheGraph(nn.Module):
    """A layer that goes on with the bare array."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return Tensor(np.tanh(self.inner(x).data))


def with_weights(change: Callable[[Array], object], model: nn.Sequential | None = None) -> nn.Sequential:
    """Return a net whose weights, of two axes, were changed in place."""
    model = model or net(nn.ReLU())
    for parameter in model.parameters():
        if parameter.ndim == 2:
            change(parameter.data)
    return model


def one_number(weight: Array) -> None:
    """The course's Kaiming initialisation: one draw, written everywhere."""
    weight[...] = 0.7 * np.sqrt(2 / weight.shape[1])


def one_row(weight: Array) -> None:
    weight[...] = weight[0]


def dead() -> nn.Sequential:
    """A net whose hidden biases keep every ReLU at 0."""
    model = net(nn.ReLU())
    biases = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    biases[0].data[...] = -50.0
    return model


def deep(activation: type[nn.Module], layers: int, scale: float) -> nn.Sequential:
    """Return a chain of layers of 32 units whose weights are `scale` times what keeps sizes equal in a linear net."""
    nn.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32))
    for _ in range(layers):
        model.append(activation()).append(nn.Linear(32, 32))
    model.append(nn.Linear(32, 10))
    for parameter in model.parameters():
        if parameter.shape == (32, 32):
            # PyTorch's default draws have a variance of 1 / (3 inputs).
            parameter.data *= scale * np.sqrt(3)
    return model


class Detached(nn.Module):
    """A layer whose output is detached, so that nothing before it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().detach())


class Unused(nn.Module):
    """A net with a layer that its forward does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x)


class Drawn(nn.Module):
    """A layer with numbers of its own in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.rng = nn.Linear(6, 3), np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * self.rng.random(6).astype(np.float32))


class Halved(nn.Module):
    """A net of whose two factors, which are equal, one is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * Tensor(self.last(x).data)


class Blind(nn.Module):
    """A layer that takes the mean of the bare array."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0 + Tensor(x.data - x.data.mean())


def tiny_before_normalisation() -> nn.Sequential:
    """Return a net whose first weights are tiny, which a normalisation makes up for in the forward."""
    model = net(nn.LayerNorm(32, eps=1e-14))
    for parameter in model[1].parameters():
        parameter.data *= 1e-5
    return model


def logarithm() -> nn.Sequential:
    """Return a net that takes the logarithm of negative numbers."""

    def forward(x: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.asarray(np.log(x))

    return net(Elementwise(forward, lambda g, y, x: g / x))
