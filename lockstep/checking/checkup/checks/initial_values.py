"""Check that the units of a layer start with different weights, so that they can learn different things."""

import math

import numpy as np

from lockstep.checking.checkup.finding import Finding, found
from lockstep.common.nn.module import Module, Parameter, place_of


def check_initial_values(model: Module) -> list[Finding]:
    """Return a finding for each weight whose units are all equal, or that is not finite.

    A last layer of zeros is not a mistake, because its gradient differs from class to class at once.
    """
    weights = [each for each in _weights(model) if len(each[2].data) > 1]
    findings = []
    for layer, name, weight in weights:
        values, is_last = weight.data, name == weights[-1][1]
        if not np.isfinite(values).all():
            findings.append(found("weights-are-not-finite", layer=layer, name=name))
        elif (values == values.flat[0]).all():
            if not (is_last and values.flat[0] == 0):
                findings.append(_all_equal(layer, name, weight))
        elif not is_last and (values == values[:1]).all():
            findings.append(found("units-are-equal", layer=layer, name=name, units=len(values)))
    return findings


def _weights(model: Module) -> list[tuple[str, str, Parameter]]:
    """Return layer, name and value of all parameters that have units, that is, two or more axes."""
    owners = dict(model.named_modules())
    found = []
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            owner = name.rpartition(".")[0]
            found.append((place_of(owner, owners[owner]), name, parameter))
    return found


def _all_equal(layer: str, name: str, weight: Parameter) -> Finding:
    value, fan_in = float(weight.data.flat[0]), math.prod(weight.shape[1:])
    facts = {"layer": layer, "name": name, "size": weight.size, "fan_in": fan_in, "deviation": math.sqrt(2 / fan_in)}
    return found("weights-are-equal", value=value, **facts) if value else found("weights-are-zero", **facts)
