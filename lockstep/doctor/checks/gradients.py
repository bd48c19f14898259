"""Whether each layer's gradients are the derivatives of its forward, innermost layers first."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.autograd.tensor import Tensor
from common.nn.module import Module
from common.random import Purpose, generator
from lockstep.doctor.checks.derivatives import known_mistake
from lockstep.doctor.checks.signals import Call, recorded_calls
from lockstep.doctor.checks.slopes import Checked, Mismatch
from lockstep.doctor.finding import Finding
from lockstep.doctor.target import ExaminationTarget, Walk

#: Samples that gradients are checked with: BatchNorm needs some, and more only cost time.
SAMPLES = 4

#: Part of its size by which an input is moved at random, so that no two of its elements tie.
JITTER = 0.01

#: Within what part two ratios of slopes count as the same.
_SAME = 0.02


def check_gradients(target: ExaminationTarget) -> list[Finding]:
    """Return a finding for each layer with a wrong gradient: one that only contains such a layer is not named."""
    probe = target.probe()
    images, _ = target.batch(0, SAMPLES)
    for parameter in probe.parameters():
        parameter.data = parameter.data.astype(np.float64)
    with recorded_calls(probe) as calls, np.errstate(all="ignore"):
        # Tokens are chosen by, and not computed with.
        probe(Tensor(images if target.data.train.is_tokens else _jittered(images.astype(np.float64), 0)))
    findings: list[Finding] = []
    ill: set[str] = set()
    seen: set[Module] = set()
    for number, call in enumerate(calls):
        is_root = call.name == ""
        if call.module in seen or any(_is_within(name, call.name) for name in ill):
            continue
        seen.add(call.module)
        if call.is_plain_chain and not is_root:
            continue
        finding = _examine(call, target.walk if is_root else Tensor.backward, number)
        if finding is not None:
            findings.append(finding)
            ill.add(call.name)
    return findings


def _is_within(name: str, outer: str) -> bool:
    return outer == "" or name.startswith(f"{outer}.")


def _examine(call: Call, walk: Walk, number: int) -> Finding | None:
    if not isinstance(call.output, Tensor):
        return None
    call.module.zero_grad()
    checked = Checked(call.module, _variable(call.arguments, number), call.options)
    try:
        with np.errstate(all="ignore"):
            mismatches = list(checked.mismatches(walk))
    except Exception as error:  # noqa: BLE001  # a derivative of somebody else's: whatever it raises is the finding
        return _finding(call, f"walking back raised {_told(error)}", "its derivative does not fit its forward")
    if not mismatches:
        return None
    return _finding(call, _evidence(mismatches), _cause(call, checked, mismatches))


def _variable(arguments: Sequence[Any], number: int) -> tuple[Any, ...]:
    """Return arguments like these, of which floating-point tensors may be changed and differentiated by."""
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


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _evidence(mismatches: list[Mismatch]) -> str:
    """Return both slopes, of the first argument that is wrong, and which others are."""
    first, others = mismatches[0], [each.argument for each in mismatches[1:]]
    told = f"along a random direction of {first.argument} the output changes by {first.numeric[0]:.4g}"
    told += f", and its gradient says {first.exact[0]:.4g}"
    return f"{told}; also wrong: {', '.join(others)}" if others else told


def _cause(call: Call, checked: Checked, mismatches: list[Mismatch]) -> str:
    first = mismatches[0]
    samples = call.output.shape[0] if call.output.ndim else 1
    if not any(first.exact):
        return (
            f"no gradient arrives at {first.argument}: the forward leaves the graph, by .data, .numpy() or a NumPy "
            "function"
        )
    mistake = known_mistake(call, checked) if first.argument == "its input" else None
    if mistake is not None:
        return mistake
    ratios = [exact / numeric for exact, numeric in zip(first.exact, first.numeric, strict=True) if numeric]
    if ratios and all(abs(ratio - ratios[0]) <= _SAME * abs(ratios[0]) for ratio in ratios):
        return _factor(ratios[0], samples)
    return "its derivative is not that of its forward"


def _factor(ratio: float, samples: int) -> str:
    if abs(ratio + 1) <= _SAME:
        return "its gradient has the wrong sign"
    if abs(ratio - samples) <= _SAME * samples:
        return f"its gradient is {samples} times too large, the number of samples: it is divided nowhere, or not here"
    if abs(ratio * samples - 1) <= _SAME:
        return f"its gradient is {samples} times too small, the number of samples: it is divided by that once too often"
    return f"its gradient is {ratio:.3g} times what it should be"


def _finding(call: Call, evidence: str, cause: str) -> Finding:
    where = "the derivative of its primitive" if call.applied else "its forward"
    return Finding(
        kind="gradient",
        what=f"the gradient of {call.named} is wrong",
        evidence=evidence,
        cause=cause,
        change=f"correct {where}; its formula can be checked element by element with check_gradients",
    )
