"""Translate a model to a graph of ONNX: the only module that imports onnx, an extra.

The model is traced as a list of primitives, on two samples and on three, and each primitive becomes operators:
https://onnx.ai/onnx/operators, operator set 20. For a table, the graph has an input for each column, as it is in a
table, and its outputs are predictions as we print them. Values are scaled as float64, and rounded to float32 where our
samples are: so both have the same samples, bit for bit."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from lockstep.common.autograd.graph import Applied, no_grad, watch
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.columns import Column, ColumnKind
from lockstep.common.data.folder import Conversion
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.records import fields_of
from lockstep.common.errors import ModelError
from lockstep.common.files.sanitize import one_line
from lockstep.common.model.autograd import arguments, taken
from lockstep.common.nn.module import Module
from lockstep.common.numerics.operands import Window
from lockstep.results.evaluation.predictor import class_names_of

#: Numbers of samples to run: what differs between the two depends on the number.
FEW, MORE = 2, 3

#: Stands for the number of samples in a shape, or for a size that depends on it.
ANY = -1


#: The name of the samples.
INPUT = "samples"

#: The name of the samples, of an array of the state dict, or of an earlier step's result; or an array or a number of
#: the forward itself, None for an omitted argument.
Operand = Any


class TracedStep(msgspec.Struct, frozen=True):
    """One applied primitive."""

    primitive: str
    operands: tuple[Operand, ...]
    #: Arrays among the options are operands, too.
    options: Mapping[str, Any]
    #: The name of the result.
    result: str
    #: Shapes of the result and of the first operand, with the number of samples of the run.
    shape: tuple[int, ...]
    before: tuple[int, ...]


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
    steps = list[TracedStep]()
    # All arrays that were seen are kept, so that none of their ids is reused.
    held = [tensor.data for tensor in given.values()]

    def operand(value: Any) -> Operand:
        return names.get(id(value), value) if isinstance(value, np.ndarray) else value

    def record(applied: Applied) -> None:
        result = applied.result
        step = TracedStep(
            primitive=applied.primitive.name,
            operands=tuple(map(operand, applied.arrays)),
            options={key: operand(value) for key, value in applied.options.items()},
            result=f"step.{len(steps)}",
            shape=result.shape,
            before=np.shape(applied.arrays[0]),
        )
        steps.append(step)
        names[id(result)] = step.result
        held.extend([result, *applied.arrays])

    with no_grad(), watch(record):
        output = taken(model(*inputs, **by_name))
    if id(output.data) not in names:
        raise ModelError("the model's output does not come from its primitives: it cannot be exported as a graph")
    return Trace(steps, names[id(output.data)], output.shape)


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
    if _is_same(few, more):
        return few
    is_shape = isinstance(few, tuple) and all(isinstance(each, int) for each in (*few, *more))
    if not is_shape or len(few) != len(more):
        raise ModelError(f"the model's forward gives {primitive!r} an option that depends on the number of samples")
    return joined_shape(few, more)


def _is_same(few: Operand, more: Operand) -> bool:
    if isinstance(few, tuple) and isinstance(more, tuple):
        return len(few) == len(more) and all(map(_is_same, few, more))
    is_array = isinstance(few, np.ndarray) or isinstance(more, np.ndarray)
    return np.array_equal(few, more) if is_array else bool(few == more)


def joined_shape(few: Sequence[int], more: Sequence[int]) -> tuple[int, ...]:
    """Return a shape that was seen with both numbers of samples, with `ANY` for sizes that differ."""
    return tuple(one if one == other else ANY for one, other in zip(few, more, strict=True))


#: The version of the operator set, the first with Gelu, and that of the file format that came with it, so that older
#: readers know it.
OPERATOR_SET, FORMAT_VERSION = 20, 9

#: The operators for the columns of tables, and the version of that set.
TABLES, TABLES_SET = "ai.onnx.ml", 3

#: The name of the graph's output.
OUTPUT = "logits"


@dataclass
class OnnxGraph:
    """Operators in order, and the arrays that they read besides the input."""

    nodes: list[NodeProto] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    #: The begin of the names of results, and of arrays without a name.
    prefix: str = ""

    def add(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """Add an operator, and return the name of its output."""
        output = output or f"{self.prefix}between.{len(self.nodes)}"
        name = f"{self.prefix}node.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def constant(self, array: Any) -> str:
        """Add an array, and return its name."""
        name = f"{self.prefix}constant.{len(self.arrays)}"
        self.arrays[name] = np.asarray(array)
        return name

    def integers(self, values: Any) -> str:
        return self.constant(np.array(values, dtype=np.int64).reshape(-1))

    def name(self, operand: Operand) -> str:
        """Return the name of an operand, empty for an omitted one."""
        if operand is None or isinstance(operand, str):
            return operand or ""
        # A Python number takes the dtype of the other operand: float32, as all of a model is.
        return self.constant(np.asarray(operand, None if isinstance(operand, np.ndarray) else np.float32))


def graph_of(trace: Trace, weights: dict[str, NDArray[Any]], targets: Sequence[Column] = ()) -> OnnxGraph:
    """Return the graph of a trace, whose output has the units of `targets` if these are given.

    Raises ModelError for a primitive that has no counterpart.
    """
    graph = OnnxGraph(arrays=dict(weights))
    for step in trace.steps:
        write = _WRITERS.get(step.primitive)
        if write is None:
            raise ModelError(
                f"the model applies {step.primitive!r}, which is not exported to ONNX: use other layers, or export to "
                "safetensors"
            )
        write(graph, step, [graph.name(operand) for operand in step.operands], step.result)
    output = graph.name(trace.output)
    if targets:
        graph.add("Cast", [_unscaled(graph, output, targets)], OUTPUT, to=TensorProto.FLOAT)
    else:
        graph.add("Identity", [output], OUTPUT)
    used = {name for node in graph.nodes for name in node.input}
    graph.arrays = {name: array for name, array in graph.arrays.items() if name in used}
    return graph


def _port(name: str, kind: int, shape: Sequence[int] = ()) -> ValueInfoProto:
    """Return an input or output of a graph, of any number of samples, each of that shape; `kind` is of ONNX."""
    return helper.make_tensor_value_info(name, kind, ["samples", *shape])


def sample_port(name: str, sample_shape: Sequence[int], *, of_tokens: bool = False) -> ValueInfoProto:
    """Return the input for prepared samples, float32, or for tokens, int64; the only one has no name of its own."""
    return _port(name or INPUT, TensorProto.INT64 if of_tokens else TensorProto.FLOAT, sample_shape)


def output_port(shape: Sequence[int]) -> ValueInfoProto:
    """Return the output that `graph_of` ends in, float32."""
    return _port(OUTPUT, TensorProto.FLOAT, shape)


def onnx_bytes(
    graph: OnnxGraph, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto], metadata: Mapping[str, str]
) -> bytes:
    """Return the content of the file, checked by the checker of the package.

    Raises ModelError for an input whose name is used within the graph.
    """
    _check_names(graph, inputs)
    versions = {"": OPERATOR_SET, TABLES: TABLES_SET}
    used = [domain for domain in versions if any(node.domain == domain for node in graph.nodes)]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "lockstep",
            inputs,
            outputs,
            [numpy_helper.from_array(np.array(array, order="C"), name) for name, array in graph.arrays.items()],
        ),
        opset_imports=[helper.make_opsetid(domain, versions[domain]) for domain in used],
        producer_name="lockstep",
        ir_version=FORMAT_VERSION,
    )
    helper.set_model_props(model, dict(metadata))
    checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _check_names(graph: OnnxGraph, inputs: Sequence[ValueInfoProto]) -> None:
    used = {name for node in graph.nodes for name in node.output} | graph.arrays.keys()
    odd = next((each.name for each in inputs if each.name in used or not each.name), None)
    if odd is not None:
        raise ModelError(
            f"the input {one_line(odd, 60)!r} is called like a part of the graph: expected another name; rename it in "
            "the data, or export with --format safetensors"
        )


#: `(graph, step, names of its operands, name of its result)`
Writer = Callable[[OnnxGraph, TracedStep, list[str], str], object]


def _plain(operator: str, **attributes: Any) -> Writer:
    """Return the writer of an operator with the operands of the primitive and no options."""
    return lambda graph, step, names, out: graph.add(operator, names, out, **attributes)


def _with_option(operator: str, attribute: str, option: str) -> Writer:
    """Return the writer of an operator with an attribute that is an option of the primitive."""
    return lambda graph, step, names, out: graph.add(operator, names, out, **{attribute: step.options[option]})


def _linear(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    x, weight, *bias = [name for name in names if name]
    if len(step.before) == 2:
        graph.add("Gemm", [x, weight, *bias], out, transB=1)
        return
    turned = graph.add("Transpose", [weight], perm=[1, 0])
    product = graph.add("MatMul", [x, turned], None if bias else out)
    if bias:
        graph.add("Add", [product, *bias], out)


def _each(value: Any, step: TracedStep) -> list[int]:
    """Return an option of a step over images or signals for each axis behind samples and channels."""
    return [value] * (len(step.before) - 2) if isinstance(value, int) else [int(each) for each in value]


def _convolution(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    stride, padding, dilation = (_each(step.options[name], step) for name in ("stride", "padding", "dilation"))
    more = {"dilations": dilation, "group": step.options["groups"]}
    graph.add("Conv", [name for name in names if name], out, strides=stride, pads=2 * padding, **more)


def _windows_of(step: TracedStep) -> tuple[list[Window], dict[str, list[int]]]:
    """Return the windows of a pool along each axis, and the attributes with as much padding at the end as they take.

    Raises ModelError for so much padding that onnxruntime refuses it.
    """
    options = step.options
    kernel, padding, reach = (_each(options.get(name, 1), step) for name in ("kernel_size", "padding", "dilation"))
    stride = kernel if options["stride"] is None else _each(options["stride"], step)
    along = zip(step.before[2:], kernel, stride, padding, reach, strict=True)
    windows = [Window(*each, options["ceil_mode"]) for each in along]
    ends = [
        max(0, (each.count - 1) * each.stride + each.reach - each.size - each.padding) if each.is_ceil else each.padding
        for each in windows
    ]
    if any(end >= length for end, length in zip(ends, kernel, strict=True)):
        raise ModelError(
            f"a pool with dilation {tuple(reach)} whose last window is cut off is not exported to ONNX: expected "
            "ceil_mode=False"
        )
    return windows, {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *ends]}


def _max_pool(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    graph.add("MaxPool", names, out, **_windows_of(step)[1], dilations=_each(step.options["dilation"], step))


def _avg_pool(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    (windows, attributes), options = _windows_of(step), step.options
    override, counts_padding = options.get("divisor_override"), options["count_include_pad"]
    if override is None and not options["ceil_mode"]:
        graph.add("AveragePool", names, out, **attributes, count_include_pad=int(counts_padding))
        return
    means = graph.add("AveragePool", names, None, **attributes, count_include_pad=1)
    lengths = (np.array(each.lengths(with_padding=counts_padding)) for each in windows)
    divisor = np.array([override]) if override is not None else functools.reduce(np.multiply.outer, lengths)
    factor = math.prod(attributes["kernel_shape"]) / divisor
    graph.add("Mul", [means, graph.constant(factor.astype(np.float32))], out)


def _variance(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    axis = step.options["axis"]
    given = range(len(step.before)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = [each % len(step.before) for each in given]
    count = math.prod(step.before[each] for each in axes)
    if any(step.before[each] == ANY for each in axes):
        raise ModelError("a variance over samples is not exported to ONNX: expected one over other axes")
    centred = graph.add("Sub", [names[0], graph.add("ReduceMean", [names[0], graph.integers(axes)], keepdims=1)])
    squares = graph.add("Mul", [centred, centred])
    total = graph.add("ReduceSum", [squares, graph.integers(axes)], keepdims=int(step.options["keepdims"]))
    graph.add("Div", [total, graph.name(float(max(0, count - step.options["correction"])))], out)


def _adaptive_average(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    sizes, wanted = step.before[2:], step.shape[2:]
    if any(size % few for size, few in zip(sizes, wanted, strict=True)):
        raise ModelError(
            f"adaptive average pooling from {sizes} to {tuple(wanted)} is not exported to ONNX: expected "
            "input sizes that are multiples of the output sizes"
        )
    kernel = [size // few for size, few in zip(sizes, wanted, strict=True)]
    graph.add("AveragePool", names, out, kernel_shape=kernel, strides=kernel)


def _batch_norm(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    channels = step.before[1]
    scale = names[1] or graph.constant(np.ones(channels, np.float32))
    shift = names[2] or graph.constant(np.zeros(channels, np.float32))
    statistics = [graph.name(step.options[name]) for name in ("mean", "var")]
    graph.add("BatchNormalization", [names[0], scale, shift, *statistics], out, epsilon=step.options["eps"])


def _layer_norm(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    axes = step.options["axes"]
    scale = names[1] or graph.constant(np.ones(step.before[-axes:], np.float32))
    inputs = [names[0], scale, *([names[2]] if names[2] else [])]
    graph.add("LayerNormalization", inputs, out, axis=-axes, epsilon=step.options["eps"])


def _reshape(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    if step.shape.count(-1) > 1:
        raise ModelError(f"a reshape to {step.shape} is not exported to ONNX: expected one axis of samples")
    graph.add("Reshape", [names[0], graph.integers(step.shape)], out)


def _permute(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    graph.add("Transpose", names, out, perm=[axis % len(step.before) for axis in step.options["axes"]])


def _transpose(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    order = list(range(len(step.before)))
    first, second = step.options["first"], step.options["second"]
    order[first], order[second] = order[second], order[first]
    graph.add("Transpose", names, out, perm=order)


def _reduction(operator: str) -> Writer:
    def write(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
        axis = step.options["axis"]
        axes = [graph.integers(range(len(step.before)) if axis is None else axis)]
        graph.add(operator, [*names, *axes], out, keepdims=int(step.options["keepdims"]))

    return write


def _clip(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    bounds = [step.options["low"], step.options["high"]]
    graph.add("Clip", [*names, *(graph.name(bound) for bound in bounds)], out)


def _softplus(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    beta = step.options["beta"]
    if beta == 1:
        graph.add("Softplus", names, out)
        return
    factor = graph.name(float(beta))
    curve = graph.add("Softplus", [graph.add("Mul", [*names, factor])])
    graph.add("Div", [curve, factor], out)


def _index(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    index = step.options["index"]
    parts = index if isinstance(index, tuple) else (index,)
    chosen = [(axis, part) for axis, part in enumerate(parts) if not isinstance(part, slice)]
    is_list = len(chosen) == 1 and np.ndim(chosen[0][1]) == 1 and np.asarray(chosen[0][1]).dtype.kind == "i"
    is_plain = is_list or all(type(part) is int for _, part in chosen)
    if not is_plain or any(isinstance(part, slice) and part.step not in (None, 1) for part in parts):
        raise ModelError(
            f"an index of {index!r} is not exported to ONNX: expected integers or one list of them, and slices without "
            "a step"
        )
    name, ends = names[0], np.iinfo(np.int64).max
    cuts = [(axis, part) for axis, part in enumerate(parts) if isinstance(part, slice)]
    if cuts:
        starts, stops = zip(
            *((part.start or 0, ends if part.stop is None else part.stop) for _, part in cuts), strict=True
        )
        name = graph.add("Slice", [name, *map(graph.integers, (starts, stops, [axis for axis, _ in cuts]))])
    # From the last axis on, so that earlier axes keep their numbers.
    for axis, part in reversed(chosen):
        name = graph.add("Gather", [name, graph.constant(np.asarray(part, np.int64))], axis=axis)
    graph.add("Identity", [name], out)


def _unsqueeze(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    graph.add("Unsqueeze", [names[0], graph.integers(step.options["axis"])], out)


def _recurrent(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    """Write an LSTM, a GRU or an RNN: its output, and behind it the last states."""
    kind, hidden = step.options["kind"], step.shape[-1]
    if step.options["lengths"] is not None:
        raise ModelError("lengths of sequences are not exported to ONNX: expected sequences of one length")
    # The standard has gates in another order than PyTorch, and one more axis, for the direction.
    gates = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}.get(kind, (0,))
    rows = graph.integers([gate * hidden + row for gate in gates for row in range(hidden)])
    sequence, *states, to_input, to_state, input_bias, state_bias = (*names, "", "")[:7]
    weights = [graph.add("Unsqueeze", [graph.add("Gather", [each, rows]), graph.integers(0)])
               for each in (to_input, to_state)]  # fmt: skip
    bias = ""
    if input_bias:
        both = [graph.add("Gather", [each, rows]) for each in (input_bias, state_bias)]
        bias = graph.add("Unsqueeze", [graph.add("Concat", both, axis=0), graph.integers(0)])
    first = [graph.add("Unsqueeze", [each, graph.integers(0)]) if each else "" for each in states]
    given = [sequence, *weights, bias, "", *first[: 1 + (kind == "lstm")]]
    options: dict[str, dict[str, Any]] = {"gru": {"linear_before_reset": 1}, "relu": {"activations": ["Relu"]}}
    attributes = options.get(kind, {})
    operator = {"lstm": "LSTM", "gru": "GRU"}.get(kind, "RNN")
    direction = "reverse" if step.options["is_reversed"] else "forward"
    outputs = [f"{out}.{name}" for name in ("steps", "last", "cells")[: 2 + (kind == "lstm")]]
    while given[-1] == "":
        given.pop()
    node = helper.make_node(operator, given, outputs, f"{out}.node", hidden_size=hidden, direction=direction,
                            **attributes)  # fmt: skip
    graph.nodes.append(node)
    whole = graph.add("Squeeze", [outputs[0], graph.integers(1)])
    graph.add("Concat", [whole, *outputs[1:]], out, axis=0)


def _stack(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    axis = step.options["axis"]
    parts = [graph.add("Unsqueeze", [name, graph.integers(axis)]) for name in names]
    graph.add("Concat", parts, out, axis=axis)


def _pad(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    before, after = zip(*step.options["widths"], strict=True)
    value = graph.name(float(step.options["value"]))
    graph.add("Pad", [names[0], graph.integers([*before, *after]), value], out)


def _embedding(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    indices, weight = names
    graph.add("Gather", [weight, graph.add("Cast", [indices], to=TensorProto.INT64)], out)


_WRITERS: dict[str, Writer] = {
    **{name: _plain(name.title()) for name in ("abs", "add", "exp", "log", "relu", "sigmoid", "sqrt", "tanh", "where")},
    "linear": _linear,
    "matmul": _plain("MatMul"),
    "subtract": _plain("Sub"),
    "multiply": _plain("Mul"),
    "divide": _plain("Div"),
    "power": _plain("Pow"),
    "negate": _plain("Neg"),
    "maximum": _plain("Max"),
    "minimum": _plain("Min"),
    "clip": _clip,
    "leaky_relu": _with_option("LeakyRelu", "alpha", "negative_slope"),
    "softplus": _softplus,
    "gelu": _plain("Gelu"),
    "gelu_tanh": _plain("Gelu", approximate="tanh"),
    "softmax": _with_option("Softmax", "axis", "axis"),
    "log_softmax": _with_option("LogSoftmax", "axis", "axis"),
    "conv1d": _convolution,
    "conv2d": _convolution,
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool1d": _avg_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool1d": _adaptive_average,
    "adaptive_avg_pool2d": _adaptive_average,
    "batch_norm_inference": _batch_norm,
    "layer_norm": _layer_norm,
    "embedding": _embedding,
    "index": _index,
    "reshape": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "transpose": _transpose,
    "concatenate": _with_option("Concat", "axis", "axis"),
    "stack": _stack,
    "recurrent": _recurrent,
    "pad": _pad,
    "var": _variance,
    "sum": _reduction("ReduceSum"),
    "mean": _reduction("ReduceMean"),
    "max": _reduction("ReduceMax"),
    "min": _reduction("ReduceMin"),
}


#: The outputs: the likeliest class and the probabilities of all, or the numbers in the units of the table.
CLASS, PROBABILITIES, PREDICTIONS = "class", "probabilities", "predictions"


def with_table(
    graph: OnnxGraph, manifest: Conversion, preparation: Preparation
) -> tuple[OnnxGraph, list[ValueInfoProto], list[ValueInfoProto]]:
    """Return the graph from columns to predictions, with its inputs and outputs."""
    whole = OnnxGraph(arrays=dict(graph.arrays), prefix="table.")
    inputs = [_column_port(column) for column in manifest.columns]
    samples = _samples(whole, manifest.columns)
    _prepare(whole, samples, preparation)
    whole.nodes += graph.nodes
    unusable = _unusable(whole, samples)
    outputs = _classes(whole, manifest, unusable) if manifest.classes else _numbers(whole, manifest.targets, unusable)
    return whole, inputs, outputs


def _column_port(column: Column) -> ValueInfoProto:
    return _port(column.name, TensorProto.STRING if column.kind is ColumnKind.CATEGORY else TensorProto.DOUBLE)


def _samples(graph: OnnxGraph, columns: Sequence[Column]) -> str:
    """Add what makes samples of columns, float32 (n, inputs); return their name."""
    last = graph.integers(-1)
    values = [graph.add("Unsqueeze", [_values(graph, column), last]) for column in columns]
    joined = graph.add("Concat", values, axis=1)
    fill = np.array([np.nan if column.missing is None else column.missing for column in columns])
    if not np.isnan(fill).all():
        joined = graph.add("Where", [graph.add("IsNaN", [joined]), graph.constant(fill), joined])
    mean, std = (np.array([getattr(column, name) for column in columns], np.float64) for name in ("mean", "std"))
    scaled = graph.add("Div", [graph.add("Sub", [joined, graph.constant(mean)]), graph.constant(std)])
    return _spread(graph, columns, graph.add("Cast", [scaled], to=TensorProto.FLOAT))


def _spread(graph: OnnxGraph, columns: Sequence[Column], samples: str) -> str:
    """Add what makes an input of each category of the columns that have them; NaN for a text without one."""
    if not any(column.one_hot for column in columns):
        return samples
    inputs = []
    for number, column in enumerate(columns):
        value = graph.add("Gather", [samples, graph.integers(number)], axis=1)
        if column.one_hot:
            places = graph.constant(np.arange(len(column.categories), dtype=np.float32))
            hot = graph.add("Cast", [graph.add("Equal", [value, places])], to=TensorProto.FLOAT)
            value = graph.add("Where", [graph.add("IsNaN", [value]), value, hot])
        inputs.append(value)
    return graph.add("Concat", inputs, axis=1)


def _values(graph: OnnxGraph, column: Column) -> str:
    """Add what makes numbers of a column, float64 (n,): NaN for a text that did not occur in training."""
    if not column.categories:
        return column.name
    codes = [float(code) for code in range(len(column.categories))]
    table: dict[str, Any] = {"keys_strings": column.categories, "values_floats": codes, "default_float": float("nan")}
    # A float32 holds the place of each of the texts.
    return graph.add("Cast", [graph.add("LabelEncoder", [column.name], domain=TABLES, **table)], to=TensorProto.DOUBLE)


def _prepare(graph: OnnxGraph, samples: str, preparation: Preparation) -> None:
    """Add what `Preparation.images` does; the result is called as the model's input."""
    factor, offset = np.float32(1.0 / preparation.std), np.float32(preparation.mean / preparation.std)
    graph.add("Sub", [graph.add("Mul", [samples, graph.constant(factor)]), graph.constant(offset)], INPUT)


def _unusable(graph: OnnxGraph, samples: str) -> str:
    """Add what finds rows (n, 1) with a value that is not finite; return its name.

    At the end it is too late: a ReLU may make 0 of NaN.
    """
    total = graph.add("ReduceSum", [samples, graph.integers(1)], keepdims=1)
    return graph.add("IsNaN", [graph.add("Sub", [total, total])])  # infinity minus itself is NaN


def _classes(graph: OnnxGraph, manifest: Conversion, unusable: str) -> list[ValueInfoProto]:
    shares = graph.add("Softmax", [OUTPUT], axis=-1)
    graph.add("Where", [unusable, graph.constant(np.float32(np.nan)), shares], PROBABILITIES)
    names = class_names_of(manifest)
    likeliest = graph.add("ArgMax", [OUTPUT], axis=-1, keepdims=1)
    place = graph.add("Where", [unusable, graph.constant(np.int64(-1)), likeliest])
    table: dict[str, Any] = {"keys_int64s": list(range(len(names))), "values_strings": names, "default_string": ""}
    graph.add("LabelEncoder", [graph.add("Squeeze", [place, graph.integers(1)])], CLASS, domain=TABLES, **table)
    return [_port(CLASS, TensorProto.STRING), _port(PROBABILITIES, TensorProto.FLOAT, (len(names),))]


def _numbers(graph: OnnxGraph, targets: Sequence[Column], unusable: str) -> list[ValueInfoProto]:
    numbers = _unscaled(graph, OUTPUT, targets)
    graph.add("Where", [unusable, graph.constant(np.float64(np.nan)), numbers], PREDICTIONS)
    return [_port(PREDICTIONS, TensorProto.DOUBLE, (len(targets),))]


def _unscaled(graph: OnnxGraph, output: str, targets: Sequence[Column]) -> str:
    """Add what makes numbers in the units of the data, float64; return their name."""
    mean, std = (np.array([getattr(target, name) for target in targets], np.float64) for name in ("mean", "std"))
    scaled = graph.add("Mul", [graph.add("Cast", [output], to=TensorProto.DOUBLE), graph.constant(std)])
    return graph.add("Add", [scaled, graph.constant(mean)])
