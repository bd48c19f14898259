"""Translate primitives to operators of ONNX, and write the file: the only module that imports onnx, an extra.

https://onnx.ai/onnx/operators, operator set 20.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from lockstep.common.errors import ModelError
from lockstep.common.files.sanitize import one_line
from lockstep.results.evaluation.export.trace import INPUT, Operand, Trace, TracedStep

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
    #: What the names of results and arrays without a name of their own begin with.
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


def graph_of(trace: Trace, weights: dict[str, NDArray[Any]]) -> OnnxGraph:
    """Return the graph of a trace. Raises ModelError for a primitive that has no counterpart."""
    graph = OnnxGraph(arrays=dict(weights))
    for step in trace.steps:
        write = _WRITERS.get(step.primitive)
        if write is None:
            raise ModelError(
                f"the model applies {step.primitive!r}, which is not exported to ONNX: use other layers, or export to "
                "safetensors"
            )
        write(graph, step, [graph.name(operand) for operand in step.operands], step.result)
    graph.add("Identity", [graph.name(trace.output)], OUTPUT)
    used = {name for node in graph.nodes for name in node.input}
    graph.arrays = {name: array for name, array in graph.arrays.items() if name in used}
    return graph


class Port(msgspec.Struct, frozen=True):
    """An input or output of a graph, of any number of samples."""

    name: str
    #: The number of its type in ONNX.
    kind: int
    #: Of one sample.
    shape: tuple[int, ...] = ()

    def described(self) -> ValueInfoProto:
        return helper.make_tensor_value_info(self.name, self.kind, ["samples", *self.shape])


def sample_port(name: str, sample_shape: Sequence[int], *, of_tokens: bool = False) -> Port:
    """Return the input for prepared samples, float32, or for tokens, int64; the only one has no name of its own."""
    return Port(name or INPUT, TensorProto.INT64 if of_tokens else TensorProto.FLOAT, tuple(sample_shape))


def output_port(shape: Sequence[int]) -> Port:
    """Return the output that `graph_of` ends in, float32."""
    return Port(OUTPUT, TensorProto.FLOAT, tuple(shape))


def onnx_bytes(graph: OnnxGraph, inputs: Sequence[Port], outputs: Sequence[Port], metadata: Mapping[str, str]) -> bytes:
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
            [each.described() for each in inputs],
            [each.described() for each in outputs],
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


def _check_names(graph: OnnxGraph, inputs: Sequence[Port]) -> None:
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


def _pooling(operator: str) -> Writer:
    def write(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
        options = step.options
        kernel, padding = _each(options["kernel_size"], step), _each(options["padding"], step)
        stride = kernel if options["stride"] is None else _each(options["stride"], step)
        more = {"count_include_pad": int(options["count_include_pad"])} if operator == "AveragePool" else {}
        graph.add(operator, names, out, kernel_shape=kernel, strides=stride, pads=2 * padding, **more)

    return write


def _adaptive_average(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    sizes, wanted = step.before[2:], _each(step.options["output_size"], step)
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


def _causal_softmax(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    rows, columns = step.before[-2:]
    # The standard has no causal mask: adding -inf removes later positions.
    later = np.where(np.tri(rows, columns, columns - rows, dtype=np.bool_), 0, -np.inf).astype(np.float32)
    graph.add("Softmax", [graph.add("Add", [names[0], graph.constant(later)])], out, axis=-1)


def _index(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    index = step.options["index"]
    parts = index if isinstance(index, tuple) else (index,)
    if not all(type(part) is int or (isinstance(part, slice) and part.step in (None, 1)) for part in parts):
        raise ModelError(f"an index of {index!r} is not exported to ONNX: expected integers, and slices without a step")
    name, ends = names[0], np.iinfo(np.int64).max
    cuts = [(axis, part) for axis, part in enumerate(parts) if isinstance(part, slice)]
    if cuts:
        starts, stops = zip(
            *((part.start or 0, ends if part.stop is None else part.stop) for _, part in cuts), strict=True
        )
        name = graph.add("Slice", [name, *map(graph.integers, (starts, stops, [axis for axis, _ in cuts]))])
    # From the last axis on, so that earlier axes keep their numbers.
    for axis, part in reversed([(axis, part) for axis, part in enumerate(parts) if type(part) is int]):
        name = graph.add("Gather", [name, graph.constant(np.int64(part))], axis=axis)
    graph.add("Identity", [name], out)


def _unsqueeze(graph: OnnxGraph, step: TracedStep, names: list[str], out: str) -> None:
    graph.add("Unsqueeze", [names[0], graph.integers(step.options["axis"])], out)


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
    graph.add("Gather", [weight, graph.add("Cast", [indices], to=_INT64)], out)


#: The number of the type in ONNX.
_INT64 = 7


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
    "max_pool1d": _pooling("MaxPool"),
    "max_pool2d": _pooling("MaxPool"),
    "avg_pool1d": _pooling("AveragePool"),
    "avg_pool2d": _pooling("AveragePool"),
    "adaptive_avg_pool1d": _adaptive_average,
    "adaptive_avg_pool2d": _adaptive_average,
    "batch_norm_inference": _batch_norm,
    "layer_norm": _layer_norm,
    "causal_softmax": _causal_softmax,
    "embedding": _embedding,
    "index": _index,
    "reshape": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "transpose": _transpose,
    "concatenate": _with_option("Concat", "axis", "axis"),
    "stack": _stack,
    "pad": _pad,
    "sum": _reduction("ReduceSum"),
    "mean": _reduction("ReduceMean"),
    "max": _reduction("ReduceMax"),
    "min": _reduction("ReduceMin"),
}
