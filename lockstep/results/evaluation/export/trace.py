"""Trace a model as a list of primitives, by running it on two samples and on three."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.common.autograd.graph import Applied, no_grad, watch
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.errors import ModelError
from lockstep.common.nn.module import Module

#: Numbers of samples to run: what differs between the two depends on the number.
FEW, MORE = 2, 3

#: Stands for the number of samples in a shape, or for a size that depends on it.
ANY = -1


@dataclass(frozen=True)
class TracedInput:
    """The samples."""


@dataclass(frozen=True)
class TracedResult:
    """The result of an earlier step."""

    step: int


@dataclass(frozen=True)
class TracedWeight:
    """An array of the state dict."""

    name: str


@dataclass(frozen=True, eq=False)
class TracedConstant:
    """An array or a number of the forward itself; None for an omitted argument."""

    value: Any


Operand = TracedInput | TracedResult | TracedWeight | TracedConstant


@dataclass(frozen=True)
class TracedStep:
    """One applied primitive."""

    primitive: str
    operands: tuple[Operand, ...]
    #: Arrays among the options are operands, too.
    options: Mapping[str, Any]
    #: Shapes of the result and of the first operand, with the number of samples of the run.
    shape: tuple[int, ...]
    before: tuple[int, ...]


@dataclass
class _Tracer:
    """Records primitives while a model computes, and where their operands come from."""

    known: dict[int, Operand]
    steps: list[TracedStep] = field(default_factory=list)
    #: All arrays that were seen, kept so that none of their ids is reused.
    held: list[Any] = field(default_factory=list)

    def record(self, applied: Applied) -> None:
        result, options = applied.result, applied.options
        self.steps.append(
            TracedStep(
                primitive=applied.primitive.name,
                operands=tuple(map(self.operand, applied.arrays)),
                options={key: self.operand(it) if isinstance(it, np.ndarray) else it for key, it in options.items()},
                shape=result.shape,
                before=np.shape(applied.arrays[0]),
            )
        )
        self.known[id(result)] = TracedResult(len(self.steps) - 1)
        self.held += [result, *applied.arrays]

    def operand(self, value: Any) -> Operand:
        known = self.known.get(id(value)) if isinstance(value, np.ndarray) else None
        return known if known is not None else TracedConstant(value)


@dataclass(frozen=True)
class Trace:
    """The steps of a model, and its output."""

    steps: list[TracedStep]
    output: Operand
    #: Shape of the output, with `ANY` for the number of samples.
    shape: tuple[int, ...]


def trace_of(model: Module, samples: Array) -> Trace:
    """Return the trace of a model in evaluation mode, run on at least three samples.

    Raises ModelError if its forward computes with anything but the primitives of this library.
    """
    few, more = _recorded(model, samples[:FEW]), _recorded(model, samples[-MORE:])
    if len(few.steps) != len(more.steps):
        raise ModelError("the model's forward takes other steps for other samples: it cannot be exported as a graph")
    steps = [_joined(one, other) for one, other in zip(few.steps, more.steps, strict=True)]
    if isinstance(few.output, TracedConstant):
        raise ModelError("the model's output does not come from its primitives: it cannot be exported as a graph")
    return Trace(steps, few.output, joined_shape(few.shape, more.shape))


def _recorded(model: Module, samples: Array) -> Trace:
    x = Tensor(np.array(samples))
    known: dict[int, Operand] = {id(x.data): TracedInput()}
    known |= {id(parameter.data): TracedWeight(name) for name, parameter in model.named_parameters()}
    known |= {id(statistic.value): TracedWeight(name) for name, statistic in model.named_buffers()}
    tracer = _Tracer(known, held=[x.data])
    with no_grad(), watch(tracer.record):
        output = model(x)
    return Trace(tracer.steps, tracer.operand(output.data), output.shape)


def _joined(few: TracedStep, more: TracedStep) -> TracedStep:
    """Return a step that was recorded twice, with `ANY` in shapes for what depends on the number of samples."""
    if few.primitive != more.primitive or not all(map(_is_same, few.operands, more.operands)):
        raise ModelError(
            f"the model's forward applies {few.primitive!r} to numbers that depend on the samples not only through "
            "primitives of this library: it cannot be exported as a graph"
        )
    options = {name: _joined_option(few.primitive, value, more.options[name]) for name, value in few.options.items()}
    return TracedStep(few.primitive, few.operands, options, joined_shape(few.shape, more.shape), few.before)


def _joined_option(primitive: str, few: Any, more: Any) -> Any:
    if isinstance(few, tuple) and few != more and len(few) == len(more):
        return joined_shape(few, more)
    if not (_is_same(few, more) if isinstance(few, TracedConstant) else few == more):
        raise ModelError(f"the model's forward gives {primitive!r} an option that depends on the number of samples")
    return few


def _is_same(few: Any, more: Any) -> bool:
    if isinstance(few, TracedConstant) and isinstance(more, TracedConstant):
        return np.array_equal(few.value, more.value)
    return bool(few == more)


def joined_shape(few: Sequence[int], more: Sequence[int]) -> tuple[int, ...]:
    """Return a shape that was seen with both numbers of samples, with `ANY` for sizes that differ."""
    return tuple(one if one == other else ANY for one, other in zip(few, more, strict=True))
