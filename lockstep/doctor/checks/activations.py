"""Units that cannot learn: ReLUs that are never positive, tanh and sigmoid at their ends."""

import numpy as np

from common.autograd.primitives.primitive import Array
from lockstep.doctor.checks.signals import Signals
from lockstep.doctor.checks.watching import Call
from lockstep.doctor.finding import Finding

#: Part of a layer's units that may be dead at the start. Among few samples, some always are.
MOST_DEAD = 0.5

#: Part of a layer's values that may lie where the slope is a twentieth of the steepest.
MOST_SATURATED = 0.5

#: Where tanh and sigmoid are that flat.
_TANH_FLAT, _SIGMOID_FLAT = 0.975, 0.4875


def check_activations(signals: Signals) -> list[Finding]:
    """Return a finding for each layer most of whose units are dead or saturated."""
    return [
        finding
        for call in signals.calls
        for primitive, result in call.applied
        if (finding := _examine(call, primitive, result, len(signals.outputs))) is not None
    ]


def _examine(call: Call, primitive: str, result: Array, samples: int) -> Finding | None:
    match primitive:
        case "relu":
            return _dead(call, result, samples)
        case "tanh":
            return _saturated(call, float(np.mean(np.abs(result) > _TANH_FLAT)), "-1 or 1")
        case "sigmoid":
            return _saturated(call, float(np.mean(np.abs(result - 0.5) > _SIGMOID_FLAT)), "0 or 1")
        case _:
            return None


def _dead(call: Call, result: Array, samples: int) -> Finding | None:
    if result.ndim < 2:
        return None
    # A unit is a feature, or a map with all its places.
    others = tuple(axis for axis in range(result.ndim) if axis != 1)
    dead = int(np.count_nonzero(~(result > 0).any(axis=others)))
    units = result.shape[1]
    if dead <= MOST_DEAD * units:
        return None
    return Finding(
        kind="dead-relu",
        what=f"{dead} of {units} ReLUs of {call.named} are dead",
        evidence=f"they are 0 for all of {samples} training samples",
        cause="what they are given is never above 0: a bias far below 0, weights too large, or inputs far from 0; "
        "no gradient passes, so they stay dead",
        change="start biases at 0 and weights as nn.init.kaiming_normal_ does, normalise the data, or use LeakyReLU",
    )


def _saturated(call: Call, share: float, ends: str) -> Finding | None:
    if share <= MOST_SATURATED:
        return None
    return Finding(
        kind="saturated",
        what=f"{share:.0%} of the outputs of {call.named} are saturated",
        evidence=f"they lie at {ends}, where its slope is a twentieth of the steepest or less",
        cause="what it is given is too large: weights too large, or data not normalised",
        change="start weights as nn.init.xavier_normal_ does, and normalise the data",
    )
