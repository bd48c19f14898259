"""Check that gradients are derivatives: of each layer, innermost layers first, and of a tensor that is used twice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from lockstep.checking.checkup.activations import ModuleCall, recorded_calls, root_mean_square
from lockstep.checking.checkup.target import ExaminationTarget, Finding, Walk, found
from lockstep.common.aggregation.layout import trained_parameters
from lockstep.common.autograd.gradient_check import Slope, slope_along
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.layers.containers import Sequential
from lockstep.common.nn.module import Module
from lockstep.common.numerics.random import Purpose, generator

#: A wrong derivative is wrong in every direction, with probability 1; one that crosses a kink is not.
DIRECTIONS = 3


class Precision(msgspec.Struct, frozen=True):
    """The precision of central differences."""

    #: Relative to the size of the array that is varied.
    step: float
    #: Largest error, relative to the terms of a slope, and to the terms of a value.
    of_slope: float
    of_value: float


#: For float64: a kink is hardly ever within the step, and rounding leaves nine digits.
FINE = Precision(1e-6, 1e-3, 1e-7)

#: For modules that compute in float32 whatever their input is.
COARSE = Precision(1e-2, 0.1, 1e-3)


def mismatches_of(call: ModuleCall, walk: Walk) -> Iterator[tuple[str, list[Slope]]]:
    """Yield the arguments with a wrong gradient of a call in float64, and their slopes along some directions.

    The arguments may be changed.

    Raises what the backward pass raises.
    """
    output = _output(call)
    weights = generator(0, Purpose.CANARY, at=1).standard_normal(output.shape)
    precision = FINE if output.dtype == np.float64 else COARSE
    arrays = dict(_checked_arrays(call))
    if output.requires_grad:
        walk((output * weights.astype(output.dtype)).sum())
    noise = precision.of_value * float(np.sum(np.abs(output.data * weights)))
    for number, (argument, tensor) in enumerate(arrays.items()):
        slopes = []
        for slope in _slopes(call, tensor, weights, precision, number):
            if not abs(slope.exact - slope.numeric) > precision.of_slope * slope.scale + noise:
                break  # it is right, or NaN, which another check reports
            slopes.append(slope)
        else:
            yield argument, slopes


def _checked_arrays(call: ModuleCall) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors whose gradients are checked."""
    inputs = [each for each in call.arguments if isinstance(each, Tensor) and each.requires_grad]
    for place, each in enumerate(inputs):
        yield ("its input" if len(inputs) == 1 else f"its input {place}"), each
    yield from trained_parameters(call.module).items()


def _output(call: ModuleCall) -> Tensor:
    call.module.reseed(0, 0, 0)
    return call.module(*call.arguments, **call.options)


def _slopes(call: ModuleCall, tensor: Tensor, weights: Array, precision: Precision, number: int) -> Iterator[Slope]:
    gradient = np.zeros(tensor.shape) if tensor.grad is None else np.array(tensor.grad, np.float64)
    for place in range(DIRECTIONS):
        rng = generator(0, Purpose.CANARY, at=2, micro_batch=number, layer=place)
        direction = rng.standard_normal(tensor.shape) * (root_mean_square(tensor.data) or 1.0)
        yield slope_along(direction, tensor.data, gradient, lambda: _value(call, weights), precision.step)


def _value(call: ModuleCall, weights: Array) -> float:
    with no_grad():
        return float(np.sum(_output(call).data * weights))


#: Name -> (function, derivative), both of the input x.
_KNOWN: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": (lambda x: _sigmoid(x), lambda x: _sigmoid(x) * (1 - _sigmoid(x))),
    "the identity": (lambda x: x, np.ones_like),
    "exp": (np.exp, np.exp),
    "softplus": (lambda x: np.logaddexp(x, 0), lambda x: _sigmoid(x)),
    "the square": (np.square, lambda x: 2 * x),
}

#: Derivatives that take the output y for the input x, or the other way round: `(x, y) -> derivative`.
_SWAPPED: dict[str, Callable[[Array, Array], Array]] = {
    "1 - x², of its input x, where tanh needs 1 - y², of its output y": lambda x, y: 1 - x**2,
    "1 - tanh(y)², of its output y, where tanh needs 1 - tanh(x)², of its input x": lambda x, y: 1 - np.tanh(y) ** 2,
    "x (1 - x), of its input x, where sigmoid needs y (1 - y), of its output y": lambda x, y: x * (1 - x),
}


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def known_mistake(call: ModuleCall) -> str | None:
    """Return which known derivative a layer with one input and no parameters has, if any."""
    (x,) = [each for each in call.arguments if isinstance(each, Tensor)] or (None,)
    if x is None or any(True for _ in call.module.parameters()) or call.output.shape != x.shape:
        return None
    x.zero_grad()
    output = call.module(*call.arguments, **call.options)
    output.backward(np.ones_like(output.data))
    derivative = np.asarray(x.grad)
    known = (name for name, (formula, _) in _KNOWN.items() if np.allclose(output.data, formula(x.data)))
    kind = next(known, type(call.module).__name__)
    for name, (_, formula) in _KNOWN.items():
        if np.allclose(derivative, formula(x.data)):
            return f"it computes {kind}, and its derivative is that of {name}"
    for name, swapped in _SWAPPED.items():
        if np.allclose(derivative, swapped(x.data, output.data)):
            return f"its derivative is {name}"
    return None


#: Samples for checking gradients: BatchNorm needs several, and more only take time.
SAMPLES = 4

#: Relative size of the noise on an input, so that no two elements tie.
JITTER = 0.01

#: Relative difference below which two ratios of slopes count as equal.
_SAME = 0.02


def check_gradients(target: ExaminationTarget) -> list[Finding]:
    """Return a finding for each layer with a wrong gradient, but not for those that only contain such a layer."""
    probe = target.probe()
    images, _ = target.batch(0, SAMPLES)
    for parameter in probe.parameters():
        parameter.data = parameter.data.astype(np.float64)
    with recorded_calls(probe) as calls, np.errstate(all="ignore"):
        # Tokens are indices, which must not change.
        probe(Tensor(images if target.data.train.is_tokens else _jittered(images.astype(np.float64), 0)))
    findings: list[Finding] = []
    faulty: set[str] = set()
    seen: set[Module] = set()
    for number, call in enumerate(calls):
        is_root = call.name == ""
        if call.module in seen or any(is_root or name.startswith(f"{call.name}.") for name in faulty):
            continue
        seen.add(call.module)
        if type(call.module) is Sequential and not is_root:
            continue  # it only calls others
        finding = _examine(call, target.walk if is_root else Tensor.backward, number)
        if finding is not None:
            findings.append(finding)
            faulty.add(call.name)
    return findings


def _examine(call: ModuleCall, walk: Walk, number: int) -> Finding | None:
    if not isinstance(call.output, Tensor):
        return None
    call.module.zero_grad()
    call = replace(call, arguments=_variable(call.arguments, number))
    if (difference := _difference_of_two(call)) > 0:
        return found("random-forward", layer=call.named, difference=difference)
    try:
        with np.errstate(all="ignore"):
            mismatches = list(mismatches_of(call, walk))
    except Exception as error:  # noqa: BLE001  # the user's derivative: whatever it raises is the finding
        return _finding(call, f"backward raised {_described(error)}", "its derivative does not fit its forward")
    if not mismatches:
        return None
    argument, slopes = mismatches[0]
    if not any(slope.exact for slope in slopes):
        return found(
            "leaves-the-graph",
            layer=call.named,
            evidence=_evidence(mismatches),
            argument=argument,
            or_else="; or correct the derivative of its primitive, if you wrote one" if call.applied else "",
        )
    return _finding(call, _evidence(mismatches), _cause(call, mismatches))


def _difference_of_two(call: ModuleCall) -> float:
    """Return the largest difference between the outputs of two calls with the same input: 0 if they are equal."""
    with no_grad(), np.errstate(all="ignore"):
        first = np.array(_output(call).data)
        second = _output(call).data
    if first.shape != second.shape or np.array_equal(first, second, equal_nan=True):
        return 0.0
    return float(np.nanmax(np.abs(first - second)))


def _variable(arguments: Sequence[Any], number: int) -> tuple[Any, ...]:
    """Return copies of the arguments, in which floating-point tensors require gradients."""
    return tuple(
        Tensor(_jittered(each.data, number), requires_grad=True)
        if isinstance(each, Tensor) and each.dtype.kind == "f"
        else each
        for each in arguments
    )


def _jittered(array: Any, number: int) -> Any:
    rng = generator(0, Purpose.CANARY, at=3, micro_batch=number)
    size = JITTER * (float(np.std(array)) or 1.0)
    return array + (size * rng.standard_normal(array.shape)).astype(array.dtype)


def _described(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _evidence(mismatches: list[tuple[str, list[Slope]]]) -> str:
    """Return both slopes of the first argument with a wrong gradient, and the names of the others."""
    (first, (slope, *_)), others = mismatches[0], [argument for argument, _ in mismatches[1:]]
    text = f"along a random direction of {first} the output changes by {slope.numeric:.4g}"
    text += f", and by its gradient it should be {slope.exact:.4g}"
    return f"{text}; also wrong: {', '.join(others)}" if others else text


def _cause(call: ModuleCall, mismatches: list[tuple[str, list[Slope]]]) -> str:
    first, slopes = mismatches[0]
    samples = call.output.shape[0] if call.output.ndim else 1
    if first == "its input" and (mistake := known_mistake(call)) is not None:
        return mistake
    ratios = [slope.exact / slope.numeric for slope in slopes if slope.numeric]
    if ratios and all(abs(ratio - ratios[0]) <= _SAME * abs(ratios[0]) for ratio in ratios):
        return _factor(ratios[0], samples)
    return "its derivative is not that of its forward"


def _factor(ratio: float, samples: int) -> str:
    if abs(ratio + 1) <= _SAME:
        return "its gradient has the wrong sign"
    if abs(ratio - samples) <= _SAME * samples:
        return f"its gradient is {samples} times too large, the number of samples: the division by it is missing"
    if abs(ratio * samples - 1) <= _SAME:
        return f"its gradient is {samples} times too small, the number of samples: it is divided by that once too often"
    return f"its gradient is {ratio:.3g} times what it should be"


def _finding(call: ModuleCall, evidence: str, cause: str) -> Finding:
    where = "the derivative of its primitive" if call.applied else "its forward"
    return found("gradient", layer=call.named, evidence=evidence, cause=cause, where=where)


#: The point at which the small graphs are evaluated; any point without symmetries will do.
_AT = np.array([0.3, -0.7, 1.1])


def check_walk(walk: Walk) -> list[Finding]:
    """Return the faults of a backward pass on a chain and on a graph that uses one tensor twice.

    In `s·z(s)`, the tensor s is used by the product, which is visited first, and by z, which lies deeper.
    """
    chain = _gradient_after(walk, lambda x: (x * 1.5).tanh())
    if isinstance(chain, str) or not np.allclose(chain, 1.5 * (1 - np.tanh(1.5 * _AT) ** 2)):
        evidence = f"of tanh(1.5 x) it gives {_gradient_text(chain)}"
        return [found("backward-pass", evidence=evidence, cause="even along a chain it passes on a wrong one")]
    shared = 1.5 * _AT
    curve = np.tanh(np.exp(shared))
    direct, indirect = 1.5 * curve, 1.5 * shared * (1 - curve**2) * np.exp(shared)
    fork = _gradient_after(walk, _fork)
    if not isinstance(fork, str) and np.allclose(fork, direct + indirect):
        return []
    evidence = f"of s tanh(exp(s)), s = 1.5 x, it gives {_gradient_text(fork)}"
    return [found("backward-pass", evidence=evidence, cause=_order_cause(fork, direct, indirect))]


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


def _gradient_text(gradient: Array | str) -> str:
    return gradient if isinstance(gradient, str) else f"the gradient {np.array2string(gradient, precision=4)}"


def _order_cause(gradient: Array | str, direct: Array, indirect: Array) -> str:
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
