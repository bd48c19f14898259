"""Mistakes as people make them, each planted into a net that is otherwise healthy."""

from collections.abc import Callable

import numpy as np

from lockstep import Tensor, nn
from lockstep.common.autograd.graph import GraphNode, Leaf, backward_over
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


def breadth_first(loss: Tensor) -> None:
    """The course's walk: each node once, in the order in which a queue finds them."""
    assert loss.grad_fn is not None
    nodes = [loss.grad_fn]
    for node in nodes:
        nodes += [parent for parent in _computed(node) if parent not in nodes]
    backward_over(nodes, np.ones(loss.shape, loss.dtype), retain_graph=True)


def visited_twice(loss: Tensor) -> None:
    """The course's other walk: from each node to its parents, at each of its uses, with all that they have got."""
    got: dict[GraphNode, Array] = {}

    def visit(node: GraphNode) -> None:
        arrays = node.check()
        for index, parent in enumerate(node.parents):
            if parent is None:
                continue
            derivatives = node.primitive.derivatives
            assert isinstance(derivatives, tuple)
            derivative = derivatives[index]
            assert derivative is not None
            gradient = np.broadcast_to(derivative(got[node], node.saved, *arrays, **node.options), parent.shape)
            if isinstance(parent, Leaf):
                parent.accumulate(gradient)
            else:
                got[parent] = got.get(parent, 0) + gradient
                visit(parent)

    assert loss.grad_fn is not None
    got[loss.grad_fn] = np.ones(loss.shape, loss.dtype)
    visit(loss.grad_fn)


def raising(loss: Tensor) -> None:
    raise KeyError("no gradient yet")


def _computed(node: GraphNode) -> list[GraphNode]:
    return [parent for parent in node.parents if isinstance(parent, GraphNode)]
