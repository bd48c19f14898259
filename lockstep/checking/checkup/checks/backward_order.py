"""Check that a backward pass waits, at a tensor that is used twice, for the gradients of both uses."""

from collections.abc import Callable

import numpy as np

from lockstep.checking.checkup.finding import Finding, found
from lockstep.checking.checkup.target import Walk
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor

#: The point at which the small graphs are evaluated; any point without symmetries will do.
_AT = np.array([0.3, -0.7, 1.1])


def check_walk(walk: Walk) -> list[Finding]:
    """Return the faults of a backward pass on a chain and on a graph that uses one tensor twice.

    In `s·z(s)`, the tensor s is used by the product, which is visited first, and by z, which lies deeper.
    """
    chain = _gradient_after(walk, lambda x: (x * 1.5).tanh())
    if isinstance(chain, str) or not np.allclose(chain, 1.5 * (1 - np.tanh(1.5 * _AT) ** 2)):
        evidence = f"of tanh(1.5 x) it gives {_described(chain)}"
        return [found("backward-pass", evidence=evidence, cause="even along a chain it passes on a wrong one")]
    shared = 1.5 * _AT
    curve = np.tanh(np.exp(shared))
    direct, indirect = 1.5 * curve, 1.5 * shared * (1 - curve**2) * np.exp(shared)
    fork = _gradient_after(walk, _fork)
    if not isinstance(fork, str) and np.allclose(fork, direct + indirect):
        return []
    evidence = f"of s tanh(exp(s)), s = 1.5 x, it gives {_described(fork)}"
    return [found("backward-pass", evidence=evidence, cause=_cause(fork, direct, indirect))]


def _fork(x: Tensor) -> Tensor:
    shared = x * 1.5
    return shared * shared.exp().tanh()


def _gradient_after(walk: Walk, function: Callable[[Tensor], Tensor]) -> Array | str:
    """Return the gradient at `_AT` after the backward pass, or the exception that it raised."""
    x = Tensor(_AT.copy(), requires_grad=True)
    try:
        walk(function(x).sum())
    except Exception as error:  # noqa: BLE001  # the user's function: whatever it raises is the finding
        return f"{type(error).__name__}: {error}"
    return np.zeros_like(_AT) if x.grad is None else x.grad


def _described(gradient: Array | str) -> str:
    return gradient if isinstance(gradient, str) else f"the gradient {np.array2string(gradient, precision=4)}"


def _cause(gradient: Array | str, direct: Array, indirect: Array) -> str:
    if isinstance(gradient, str):
        return "it fails if one tensor is used twice"
    if np.allclose(gradient, direct) or np.allclose(gradient, indirect):
        return (
            "a tensor that is used twice passes its gradient on before its last use has added to it, as in a "
            "breadth-first or depth-first order"
        )
    if np.allclose(gradient, 2 * direct + indirect) or np.allclose(gradient, direct + 2 * indirect):
        return "a tensor that is used twice is visited twice, and passes on its first gradient a second time"
    return "the gradients of a tensor that is used twice are not added up"
