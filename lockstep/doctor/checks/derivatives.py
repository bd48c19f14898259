"""Recognises the derivative that an element-wise layer has, where it is that of another function."""

from collections.abc import Callable

import numpy as np

from common.autograd.graph import no_grad
from common.autograd.primitives.primitive import Array
from common.autograd.tensor import Tensor
from lockstep.doctor.checks.signals import Call
from lockstep.doctor.checks.slopes import Checked

#: What a function's values and its derivative are at x, by its name.
_KNOWN: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": (lambda x: _sigmoid(x), lambda x: _sigmoid(x) * (1 - _sigmoid(x))),
    "the identity": (lambda x: x, np.ones_like),
    "exp": (np.exp, np.exp),
    "softplus": (lambda x: np.logaddexp(x, 0), lambda x: _sigmoid(x)),
    "the square": (np.square, lambda x: 2 * x),
}

#: Derivatives that are written of the output y where x is meant, or the other way round: `(x, y) -> derivative`.
_SWAPPED: dict[str, Callable[[Array, Array], Array]] = {
    "1 - x², of its input x, where tanh needs 1 - y², of its output y": lambda x, y: 1 - x**2,
    "1 - tanh(y)², of its output y, where tanh needs 1 - tanh(x)², of its input x": lambda x, y: 1 - np.tanh(y) ** 2,
    "x (1 - x), of its input x, where sigmoid needs y (1 - y), of its output y": lambda x, y: x * (1 - x),
}


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def known_mistake(call: Call, checked: Checked) -> str | None:
    """Return which derivative a layer with one input and no parameters has; None where it is none that is known."""
    (x,) = [each for each in checked.arguments if isinstance(each, Tensor)] or (None,)
    if x is None or any(True for _ in call.module.parameters()) or call.output.shape != x.shape:
        return None
    x.zero_grad()
    output = call.module(*checked.arguments, **checked.options)
    output.backward(np.ones_like(output.data))
    derivative = np.asarray(x.grad)
    function = _function_of(x.data, output.data)
    kind = type(call.module).__name__ if function is None else function
    for name, (_, formula) in _KNOWN.items():
        if np.allclose(derivative, formula(x.data)):
            return f"it computes {kind}, and its derivative is that of {name}"
    for told, swapped in _SWAPPED.items():
        if np.allclose(derivative, swapped(x.data, output.data)):
            return f"its derivative is {told}"
    return None


def _function_of(x: Array, y: Array) -> str | None:
    with no_grad():
        return next((name for name, (formula, _) in _KNOWN.items() if np.allclose(y, formula(x))), None)
