"""Compares functions with those of PyTorch, by the samples of PyTorch's own tests."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec
import numpy as np
import torch
from torch.testing._internal.common_methods_invocations import op_db

from lockstep.common.autograd.tensor import Tensor
from tests.conformance.functions import FUNCTIONS
from tests.conformance.reasons import Sample, reason_for, reason_for_result

#: Differences that rounding explains, of float64.
RTOL, ATOL = 1e-7, 1e-9

#: The errors by which a call is refused: anything else is a fault.
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError)


class Outcome(Enum):
    """How a sample went."""

    EQUAL = "equal"
    REFUSED = "documented"
    NO_SAMPLE = "refused by PyTorch"
    UNDOCUMENTED = "refused, not documented"
    DIFFERENT = "different"
    CRASHED = "crashed"

    @property
    def is_fault(self) -> bool:
        """Whether a difference is nowhere documented."""
        return self in (Outcome.UNDOCUMENTED, Outcome.DIFFERENT, Outcome.CRASHED)


class Result(msgspec.Struct, frozen=True):
    """The outcome of one sample."""

    name: str
    outcome: Outcome
    #: Why it is not equal, in words.
    why: str = ""


def results(names: Sequence[str] = (), most: int | None = None) -> Iterator[Result]:
    """Yield the outcomes of the samples of all functions, or of some, at most so many of each."""
    for operation in op_db:
        name = operation.name
        if name not in FUNCTIONS or (names and name not in names):
            continue
        torch.manual_seed(0)
        samples = operation.sample_inputs("cpu", torch.float64, requires_grad=True)
        for place, sample in enumerate(samples):
            if most is not None and place >= most:
                break
            yield _result(name, operation, sample)


def _result(name: str, operation: Any, sample: Any) -> Result:
    given = [sample.input, *sample.args]
    try:
        expected, wanted = _pytorch(operation, given, sample.kwargs)
    except Exception:  # noqa: BLE001  # a sample that PyTorch itself refuses is no sample
        return Result(name, Outcome.NO_SAMPLE)
    leaves = list[Tensor]()
    args, kwargs = ours(given, leaves), {key: ours(value, leaves) for key, value in sample.kwargs.items()}
    try:
        with np.errstate(all="ignore"):
            found = FUNCTIONS[name](*args, **kwargs)
            of_leaves = gradients(found, leaves)
    except REFUSALS as error:
        return refused((name, args, kwargs, error))
    except Exception as error:  # noqa: BLE001  # of any kind: that is what is looked for
        return Result(name, Outcome.CRASHED, f"{type(error).__name__}: {error}")
    return compared(name, [*listed(found), *of_leaves], [*expected, *wanted])


def refused(sample: Sample) -> Result:
    """Return the outcome of a sample that was refused."""
    reason = reason_for(sample)
    if reason is not None:
        return Result(sample[0], Outcome.REFUSED, reason.feature)
    return Result(sample[0], Outcome.UNDOCUMENTED, f"{type(sample[3]).__name__}: {sample[3]}")


def _pytorch(operation: Any, given: list[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    leaves = [each for each in tensors([*given, *kwargs.values()]) if each.requires_grad]
    found = listed(operation.op(*given, **kwargs))
    reached = [each for each in found if each.requires_grad]
    wanted = torch.autograd.grad([each.sum() for each in reached], leaves, allow_unused=True) if reached else ()
    zeros = [torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, wanted, strict=False)]
    return found, zeros


def gradients(found: Any, leaves: list[Tensor]) -> list[Any]:
    """Return the gradients of the sum of all results, at the tensors that a sample differentiates."""
    outputs = [each for each in listed(found) if isinstance(each, Tensor) and each.requires_grad]
    for each in outputs:
        each.backward(np.ones(each.shape, each.dtype))
    return [np.zeros(leaf.shape) if leaf.grad is None else leaf.grad for leaf in leaves] if outputs else []


def ours(value: Any, leaves: list[Tensor]) -> Any:
    """Return a value of a sample with tensors of ours in it."""
    if isinstance(value, torch.Tensor):
        made = Tensor(value.detach().resolve_conj().numpy().copy(), requires_grad=value.requires_grad)
        if value.requires_grad:
            leaves.append(made)
        return made
    if isinstance(value, list | tuple):
        return type(value)([ours(each, leaves) for each in value])
    return value


def tensors(value: Any) -> Iterator[Any]:
    """Yield PyTorch's tensors in a value, also within lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)


def listed(found: Any) -> list[Any]:
    """Return several results as a list, or one in a list."""
    return list(found) if isinstance(found, tuple | list) else [found]


def compared(name: str, found: list[Any], expected: list[Any]) -> Result:
    """Return the outcome of a sample with results."""
    result, reason = _compared(name, found, expected), reason_for_result(name)
    if result.outcome is Outcome.DIFFERENT and reason is not None:
        return Result(name, Outcome.REFUSED, reason.feature)
    return result


def _compared(name: str, found: list[Any], expected: list[Any]) -> Result:
    if len(found) != len(expected):
        return Result(name, Outcome.DIFFERENT, f"{len(found)} arrays instead of {len(expected)}")
    for one, other in zip(found, expected, strict=True):
        here, there = np.asarray(one.data if isinstance(one, Tensor) else one), other.detach().numpy()
        if here.shape != there.shape:
            return Result(name, Outcome.DIFFERENT, f"shape {here.shape} instead of {there.shape}")
        if not np.allclose(here, there, rtol=RTOL, atol=ATOL, equal_nan=True):
            return Result(name, Outcome.DIFFERENT, f"{np.nanmax(np.abs(here - there)):.3g} off")
    return Result(name, Outcome.EQUAL)


def share_of_equal(found: Sequence[Result]) -> tuple[int, int]:
    """Return how many samples are equal, and how many PyTorch itself computes."""
    outcomes = Counter(each.outcome for each in found)
    return outcomes[Outcome.EQUAL], outcomes.total() - outcomes[Outcome.NO_SAMPLE]


def table(found: Sequence[Result]) -> str:
    """Return a table of outcomes, a row for each function."""
    by_name: dict[str, Counter[Outcome]] = {}
    for each in found:
        by_name.setdefault(each.name, Counter())[each.outcome] += 1
    lines = ["| function | samples | " + " | ".join(each.value for each in Outcome) + " |"]
    lines.append("| --- " * (len(Outcome) + 2) + "|")
    rows = [*sorted(by_name.items()), ("all", Counter(each.outcome for each in found))]
    for name, counts in rows:
        lines.append(f"| `{name}` | {counts.total()} | " + " | ".join(str(counts[each]) for each in Outcome) + " |")
    return "\n".join(lines)
