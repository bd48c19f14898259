"""Whether activations or gradients explode or vanish from layer to layer."""

from common.autograd.tensor import Tensor
from lockstep.doctor.checks.signals import Signals, root_mean_square
from lockstep.doctor.finding import Finding

#: Factor between the sizes of two layers' gradients, or of an activation and the input, that is no longer healthy:
#: in the shipped nets both stay below 50.
LARGEST = 1e4


def check_norms(signals: Signals) -> list[Finding]:
    """Return what explodes or vanishes: nothing of the rest is looked at once a value is not finite."""
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
                    evidence=f"their size is {size:.3g}, that of the samples {start:.3g}",
                    cause="weights too large for the number of inputs of a layer: each multiplies what it is given",
                    change="start weights with deviation sqrt(2 / inputs), as nn.init.kaiming_normal_ does, or "
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
        evidence=f"that of {first!r} is {ratio:.3g} times smaller than that of {last!r}",
        cause="each layer passes less back than it is given: sigmoid or tanh in many layers, or weights too small",
        change="use ReLU with nn.init.kaiming_normal_, fewer layers, or BatchNorm between them",
    )


def _exploding(first: str, last: str, ratio: float) -> Finding:
    return Finding(
        kind="exploding",
        what="the gradients explode on their way to the first layer",
        evidence=f"that of {first!r} is {ratio:.3g} times larger than that of {last!r}",
        cause="each layer passes more back than it is given: weights too large for the number of their inputs",
        change="start weights with deviation sqrt(2 / inputs), as nn.init.kaiming_normal_ does, or set clip_norm = 1",
    )


def _not_finite(layer: str) -> Finding:
    return Finding(
        kind="not-finite",
        what="the forward pass is not finite",
        evidence=f"NaN or infinity first appears in the output of {layer}",
        cause="weights or inputs so large that float32 overflows, or a logarithm or root outside of its domain",
        change="normalise the data, start weights as nn.init.kaiming_normal_ does, and keep arguments of log above 0",
    )
