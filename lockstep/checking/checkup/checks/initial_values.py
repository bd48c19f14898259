"""Check that the units of a layer start with different weights, so that they can learn different things."""

import math

import numpy as np

from lockstep.checking.checkup.finding import Finding
from lockstep.common.nn.module import Module, Parameter, place_of


def check_initial_values(model: Module) -> list[Finding]:
    """Return a finding for each weight whose units are all equal, or that is not finite.

    A last layer of zeros is not a mistake, because its gradient differs from class to class at once.
    """
    weights = [(owner, name, weight) for owner, name, weight in _weights(model) if len(weight.data) > 1]
    findings = []
    for owner, name, weight in weights:
        is_last = name == weights[-1][1]
        values = weight.data
        if not np.isfinite(values).all():
            findings.append(_not_finite(owner, name))
        elif (values == values.flat[0]).all():
            if not (is_last and values.flat[0] == 0):
                findings.append(_all_equal(owner, name, weight))
        elif not is_last and (values == values[:1]).all():
            findings.append(_equal_rows(owner, name, weight))
    return findings


def _weights(model: Module) -> list[tuple[str, str, Parameter]]:
    """Return layer, name and value of all parameters that have units, that is, two or more axes."""
    owners = dict(model.named_modules())
    found = []
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            owner = name.rpartition(".")[0]
            found.append((place_of(owner, owners[owner]) if owner in owners else name, name, parameter))
    return found


def _all_equal(owner: str, name: str, weight: Parameter) -> Finding:
    value, shape = float(weight.data.flat[0]), weight.shape
    fan_in = math.prod(shape[1:])
    deviation = math.sqrt(2 / fan_in)
    what = "zero" if value == 0 else f"{value:.4g}"
    cause = "nothing was drawn" if value == 0 else "one number was drawn or computed, and fills the whole weight"
    return Finding(
        kind="equal-weights",
        what=f"all weights of {owner} are equal",
        evidence=f"each of the {weight.size:,} values of {name!r} is {what}",
        cause=f"{cause}: all units compute the same, get the same gradient, and stay equal forever",
        change=f"draw each value separately, with deviation {deviation:.3g} = sqrt(2 / {fan_in}), "
        "as nn.init.kaiming_normal_(weight, rng) does",
    )


def _equal_rows(owner: str, name: str, weight: Parameter) -> Finding:
    return Finding(
        kind="equal-weights",
        what=f"all units of {owner} are equal",
        evidence=f"the {len(weight.data)} rows of {name!r} are equal",
        cause="one row was drawn and repeated, so all units get the same gradient and stay equal forever",
        change="draw each value separately, as nn.init.kaiming_normal_(weight, rng) does",
    )


def _not_finite(owner: str, name: str) -> Finding:
    return Finding(
        kind="not-finite",
        what=f"the weights of {owner} are not finite",
        evidence=f"{name!r} holds NaN or infinity",
        cause="it was never written, or its initialisation divides by zero",
        change="draw it as nn.init.kaiming_normal_(weight, rng) does",
    )
