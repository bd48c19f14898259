"""Trace a model as a list of primitives, by running it on two samples and on three."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from lockstep.common.autograd.graph import Applied, no_grad, watch
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.records import fields_of
from lockstep.common.errors import ModelError
from lockstep.common.model.autograd import arguments, taken
from lockstep.common.nn.module import Module

#: Numbers of samples to run: what differs between the two depends on the number.
FEW, MORE = 2, 3

#: Stands for the number of samples in a shape, or for a size that depends on it.
ANY = -1


#: What the samples are called.
INPUT = "images"

#: The name of the samples, of an array of the state dict, or of an earlier step's result; or an array or a number of
#: the forward itself, None for an omitted argument.
Operand = Any


class TracedStep(msgspec.Struct, frozen=True):
    """One applied primitive."""

    primitive: str
    operands: tuple[Operand, ...]
    #: Arrays among the options are operands, too.
    options: Mapping[str, Any]
    #: What the result is called.
    result: str
    #: Shapes of the result and of the first operand, with the number of samples of the run.
    shape: tuple[int, ...]
    before: tuple[int, ...]


@dataclass
class _Tracer:
    """Records primitives while a model computes, and where their operands come from."""

    #: By the identity of an array.
    names: dict[int, str]
    steps: list[TracedStep] = field(default_factory=list)
    #: All arrays that were seen, kept so that none of their ids is reused.
    held: list[Any] = field(default_factory=list)

    def record(self, applied: Applied) -> None:
        result = applied.result
        step = TracedStep(
            primitive=applied.primitive.name,
            operands=tuple(map(self.operand, applied.arrays)),
            options={key: self.operand(value) for key, value in applied.options.items()},
            result=f"step.{len(self.steps)}",
            shape=result.shape,
            before=np.shape(applied.arrays[0]),
        )
        self.steps.append(step)
        self.names[id(result)] = step.result
        self.held += [result, *applied.arrays]

    def operand(self, value: Any) -> Operand:
        return self.names.get(id(value), value) if isinstance(value, np.ndarray) else value


class Trace(msgspec.Struct, frozen=True):
    """The steps of a model, and the name of its output."""

    steps: list[TracedStep]
    output: str
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
    return Trace(steps, few.output, joined_shape(few.shape, more.shape))


def _recorded(model: Module, samples: Array) -> Trace:
    # Copies: rows of one array would have one identity.
    inputs, by_name = arguments(np.array(samples))
    given = {
        name or INPUT: tensor for name, tensor in zip(fields_of(samples), (*inputs, *by_name.values()), strict=True)
    }
    names = {id(tensor.data): name for name, tensor in given.items()}
    names |= {id(parameter.data): name for name, parameter in model.named_parameters()}
    names |= {id(statistic.value): name for name, statistic in model.named_buffers()}
    tracer = _Tracer(names, held=[tensor.data for tensor in given.values()])
    with no_grad(), watch(tracer.record):
        output = taken(model(*inputs, **by_name))
    if id(output.data) not in names:
        raise ModelError("the model's output does not come from its primitives: it cannot be exported as a graph")
    return Trace(tracer.steps, names[id(output.data)], output.shape)


def _joined(few: TracedStep, more: TracedStep) -> TracedStep:
    """Return a step that was recorded twice, with `ANY` in shapes for what depends on the number of samples."""
    if few.primitive != more.primitive or not all(map(_is_same, few.operands, more.operands)):
        raise ModelError(
            f"the model's forward applies {few.primitive!r} to numbers that depend on the samples not only through "
            "primitives of this library: it cannot be exported as a graph"
        )
    options = {name: _joined_option(few.primitive, value, more.options[name]) for name, value in few.options.items()}
    return replace(few, options=options, shape=joined_shape(few.shape, more.shape))


def _joined_option(primitive: str, few: Any, more: Any) -> Any:
    if isinstance(few, tuple) and few != more and len(few) == len(more):
        return joined_shape(few, more)
    if not _is_same(few, more):
        raise ModelError(f"the model's forward gives {primitive!r} an option that depends on the number of samples")
    return few


def _is_same(few: Operand, more: Operand) -> bool:
    is_array = isinstance(few, np.ndarray) or isinstance(more, np.ndarray)
    return np.array_equal(few, more) if is_array else bool(few == more)


def joined_shape(few: Sequence[int], more: Sequence[int]) -> tuple[int, ...]:
    """Return a shape that was seen with both numbers of samples, with `ANY` for sizes that differ."""
    return tuple(one if one == other else ANY for one, other in zip(few, more, strict=True))
