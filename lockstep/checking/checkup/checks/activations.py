"""Check activations and gradients: dead or saturated units, and sizes that explode or vanish from layer to layer."""

import numpy as np

from lockstep.checking.checkup.checks.magnitudes import ModuleCall, Signals, root_mean_square
from lockstep.checking.checkup.finding import Finding
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor

#: Largest share of dead units of a layer at the start. With few samples, some always are.
MOST_DEAD = 0.5

#: Largest share of a layer's values at which the slope is at most a twentieth of the steepest.
MOST_SATURATED = 0.5

#: Distance of tanh and sigmoid from their centre at which they are that flat.
_TANH_FLAT, _SIGMOID_FLAT = 0.975, 0.4875


def check_activations(signals: Signals) -> list[Finding]:
    """Return a finding for each layer most of whose units are dead or saturated."""
    return [
        finding
        for call in signals.calls
        for primitive, result in call.applied
        if (finding := _examine(call, primitive, result, len(signals.outputs))) is not None
    ]


def _examine(call: ModuleCall, primitive: str, result: Array, samples: int) -> Finding | None:
    match primitive:
        case "relu":
            return _dead(call, result, samples)
        case "tanh":
            return _saturated(call, float(np.mean(np.abs(result) > _TANH_FLAT)), "-1 or 1")
        case "sigmoid":
            return _saturated(call, float(np.mean(np.abs(result - 0.5) > _SIGMOID_FLAT)), "0 or 1")
        case _:
            return None


def _dead(call: ModuleCall, result: Array, samples: int) -> Finding | None:
    if result.ndim < 2:
        return None
    # A unit is a feature, or a whole feature map.
    others = tuple(axis for axis in range(result.ndim) if axis != 1)
    dead = int(np.count_nonzero(~(result > 0).any(axis=others)))
    units = result.shape[1]
    if dead <= MOST_DEAD * units:
        return None
    return Finding(
        kind="dead-relu",
        what=f"{dead} of {units} ReLUs of {call.named} are dead",
        evidence=f"they are 0 for all of {samples} training samples",
        cause="their inputs are never above 0 because of a bias far below 0, large weights, or inputs far from 0; "
        "no gradient passes, so they stay dead",
        change="initialize biases with 0, weights with nn.init.kaiming_normal_, normalise the data, or use LeakyReLU",
    )


def _saturated(call: ModuleCall, share: float, ends: str) -> Finding | None:
    if share <= MOST_SATURATED:
        return None
    return Finding(
        kind="saturated",
        what=f"{share:.0%} of the outputs of {call.named} are saturated",
        evidence=f"they are near {ends}, where the slope is at most a twentieth of the steepest",
        cause="its inputs are too large: the weights are too large, or the data is not normalised",
        change="initialize weights with nn.init.xavier_normal_, and normalise the data",
    )


#: Largest healthy ratio between the sizes of two layers' gradients, or of an activation and the input. In the shipped
#: nets both stay below 50.
LARGEST = 1e4


def check_norms(signals: Signals) -> list[Finding]:
    """Return what explodes or vanishes, or the first layer with a value that is not finite."""
    if signals.nonfinite is not None:
        return [_not_finite(signals.nonfinite)]
    return [*_activations(signals), *_gradients(signals)]


def _activations(signals: Signals) -> list[Finding]:
    start = signals.input_size or 1.0
    for call in signals.calls:
        size = root_mean_square(call.output.data) if isinstance(call.output, Tensor) else 0.0
        if size > LARGEST * start:
            return [
                Finding(
                    kind="exploding",
                    what=f"the activations explode: at {call.named} they are {size / start:.3g} times the input",
                    evidence=f"their size is {size:.3g}; the size of the samples is {start:.3g}",
                    cause="the weights are too large for the number of inputs, so each layer amplifies its input",
                    change="initialize weights with nn.init.kaiming_normal_ (deviation sqrt(2 / inputs)), or "
                    "normalise between layers (BatchNorm, LayerNorm)",
                )
            ]
    return []


def _gradients(signals: Signals) -> list[Finding]:
    known = [(name, size) for name, size in signals.gradients if size]
    if len(known) < 2:
        return []
    (first, first_size), (last, last_size) = known[0], known[-1]
    if last_size > LARGEST * first_size:
        return [_vanishing(first, last, last_size / first_size)]
    if first_size > LARGEST * last_size:
        return [_exploding(first, last, first_size / last_size)]
    return []


def _vanishing(first: str, last: str, ratio: float) -> Finding:
    return Finding(
        kind="vanishing",
        what="the gradients vanish on their way to the first layer",
        evidence=f"the gradient of {first!r} is {ratio:.3g} times smaller than the gradient of {last!r}",
        cause="each layer passes back less than it receives: sigmoid or tanh in many layers, or small weights",
        change="use ReLU with nn.init.kaiming_normal_, fewer layers, or BatchNorm between them",
    )


def _exploding(first: str, last: str, ratio: float) -> Finding:
    return Finding(
        kind="exploding",
        what="the gradients explode on their way to the first layer",
        evidence=f"the gradient of {first!r} is {ratio:.3g} times larger than the gradient of {last!r}",
        cause="each layer passes back more than it receives: its weights are too large for its number of inputs",
        change="initialize weights with nn.init.kaiming_normal_ (deviation sqrt(2 / inputs)), or set clip_norm = 1",
    )


def _not_finite(layer: str) -> Finding:
    return Finding(
        kind="not-finite",
        what="the forward pass is not finite",
        evidence=f"NaN or infinity first appears in the output of {layer}",
        cause="weights or inputs so large that float32 overflows, or a logarithm or root outside its domain",
        change="normalise the data, initialize weights with nn.init.kaiming_normal_, and keep arguments of log above 0",
    )
