"""Compares our functions with ONNX's own cases of the operators that are exported, and with onnxruntime.

The package onnx has inputs, attributes and results of each operator. Attributes that a function here does not take are
options that we lack.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as runtime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto, helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.primitives.recurrent import recurrent
from lockstep.common.autograd.tensor import Tensor, apply
from tests.conformance.operations import REFUSALS, Outcome, Result, listed, refused

#: Differences that rounding explains, of float32.
TOLERANCE = 1e-5

Array = NDArray[Any]

#: A function of an operator's inputs, None for omitted ones, and of its attributes.
Operator = Callable[..., Any]


def node_results(names: Sequence[str] = (), most: int | None = None) -> Iterator[Result]:
    """Yield the outcomes of the cases of all operators, or of some, at most so many of each."""
    by_kind: dict[str, list[TestCase]] = {}
    for case in collect_testcases(None):
        assert case.model is not None
        by_kind.setdefault("+".join(node.op_type for node in case.model.graph.node), []).append(case)
    for kind, operator in OPERATORS.items():
        if not names or f"onnx node {kind}" in names:
            yield from (_result(f"onnx node {kind}", operator, case) for case in by_kind[kind][:most])


def _result(name: str, operator: Operator, case: TestCase) -> Result:
    assert case.model is not None
    assert case.data_sets is not None
    node, (given, expected) = case.model.graph.node[0], case.data_sets[0]
    by_name = dict(zip((each for each in node.input if each), given, strict=True))
    inputs = [_operand(by_name[each]) if each else None for each in node.input]
    attributes = {each.name: _plain(helper.get_attribute_value(each)) for each in node.attribute}
    try:
        with np.errstate(all="ignore"), no_grad():
            found = [np.asarray(each.data) for each in listed(operator(*inputs, **attributes))]
    except REFUSALS as error:
        return refused((name, inputs, attributes, error))
    except Exception as error:  # noqa: BLE001  # a crash is of any kind
        return Result(name, Outcome.CRASHED, f"{case.name}: {type(error).__name__}: {error}")
    # Some operators have further results, which a function here does not return: a mean, or places of maxima.
    places = [place for place, each in enumerate(node.output) if each and place < len(found)]
    references = _by_runtime(case.model, given) or [*map(np.asarray, expected)]
    for place, reference in zip(places, references, strict=False):
        if why := difference(found[place], reference):
            return Result(name, Outcome.DIFFERENT, f"{case.name}: {why}")
    return Result(name, Outcome.EQUAL if places else Outcome.DIFFERENT, "" if places else "no result")


def _operand(value: Any) -> Any:
    """Return an input: numbers as a tensor of ours, places and sizes as they are."""
    array = np.asarray(value)
    return Tensor(array) if array.dtype.kind == "f" else array


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _by_runtime(model: ModelProto, given: Sequence[Any]) -> list[Array]:
    """Return the results of onnxruntime; none if it cannot compute the case, as one whose batches come first."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # it need not print that it cannot compute a case
    content = model.SerializeToString()
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  # the classes of its errors have none in common
        return []
    names = (each.name for each in session.get_inputs())
    return list(session.run(None, dict(zip(names, map(np.asarray, given), strict=True))))


def difference(found: Array, expected: Array) -> str:
    """Return how an array differs from another one, empty if rounding explains it."""
    if found.shape != expected.shape:
        return f"shape {found.shape} instead of {expected.shape}"
    if not np.allclose(found, expected, TOLERANCE, TOLERANCE, equal_nan=True):
        return f"{np.nanmax(np.abs(found.astype(np.float64) - expected)):.3g} off"
    return ""


def _of_two(function: Operator) -> Operator:
    """Return an operator that takes any number of inputs by a function of two."""

    def operator(first: Any, *others: Any) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return operator


def _divide(x: Any, other: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        raise TypeError("a quotient of whole numbers is not truncated")
    return F.divide(x, other)


def _matrix(a: Tensor, b: Tensor, c: Any = None, **given: Any) -> Tensor:
    left, right = (x.transpose(0, 1) if given.get(name) else x for x, name in ((a, "transA"), (b, "transB")))
    product: Tensor = F.matmul(left, right) * given.get("alpha", 1.0)
    return product if c is None else product + c * given.get("beta", 1.0)


def _axes(axes: Any) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(each) for each in np.atleast_1d(axes))


def _reduction(function: Operator) -> Operator:
    def operator(x: Any, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        given = _axes(axes) or None
        if given is None and noop_with_empty_axes:
            return x
        return function(x, given, keepdim=bool(keepdims))

    return operator


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] = (),
    strides: Any = 1,
) -> Tensor:
    assert tuple(kernel_shape) == weight.shape[2:]
    return F.conv2d(F.pad(x, _widths(pads)), weight, bias, stride=strides)


def _widths(pads: Sequence[int]) -> list[int]:
    """Return widths at the beginnings of all axes, then at their ends, as `F.pad` has them: from the last axis on."""
    half = len(pads) // 2
    return [int(width) for axis in reversed(range(half)) for width in (pads[axis], pads[half + axis])]


def _pool(kind: str) -> Operator:
    def operator(
        x: Any, *, kernel_shape: Sequence[int], pads: Sequence[int] = (), strides: Any = 1, **more: Any
    ) -> Any:
        axes = len(kernel_shape)
        if axes > 2:
            raise TypeError(f"no pools along {axes} axes")
        assert pads[:axes] == pads[axes:]
        if kind == "avg":
            more = {"count_include_pad": 0, **more}
        if "dilations" in more:
            more["dilation"] = more.pop("dilations")
        function = getattr(F, f"{kind}_pool{axes}d")
        return function(x, kernel_shape, strides, list(pads[:axes]) or 0, **more)

    return operator


def _batch_norm(
    x: Tensor, scale: Any, shift: Any, mean: Any, var: Any, *, epsilon: float = 1e-5, training_mode: int = 0
) -> Any:
    if training_mode:
        raise ValueError("running variances are those of PyTorch, which divides by one less than the samples")
    return F.batch_norm(x, mean.data, var.data, scale, shift, training=False, eps=epsilon)


def _layer_norm(x: Tensor, scale: Tensor, shift: Any = None, *, axis: int = -1, epsilon: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[axis:], scale, shift, epsilon)


def _slice(x: Tensor, starts: Array, ends: Array, axes: Any = None, steps: Any = None) -> Tensor:
    parts = [slice(None)] * x.ndim
    given = range(len(starts)) if axes is None else axes
    for axis, start, end, step in zip(given, starts, ends, [1] * len(starts) if steps is None else steps, strict=True):
        parts[axis] = slice(int(start), int(end), int(step))
    return x[tuple(parts)]


def _gather(x: Tensor, indices: Array, *, axis: int = 0) -> Tensor:
    return x[(*[slice(None)] * (axis % x.ndim), indices)]


def _reshape(x: Tensor, sizes: Array, *, allowzero: int = 0) -> Tensor:
    kept = {} if allowzero else {int(place): x.shape[place] for place in np.flatnonzero(sizes == 0)}
    return F.reshape(x, [kept.get(place, int(size)) for place, size in enumerate(sizes)])


def _unsqueeze(x: Tensor, axes: Array) -> Tensor:
    ndim = x.ndim + len(axes)
    for axis in sorted(int(each) % ndim for each in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: Array) -> Tensor:
    return F.squeeze(x, _axes(axes))


def _pad(x: Any, pads: Array, value: Any = None, axes: Any = None, *, mode: str = "constant") -> Any:
    whole = np.zeros((2, x.ndim), np.int64)
    whole[:, list(range(x.ndim) if axes is None else axes)] = np.reshape(pads, (2, -1))
    name = {"edge": "replicate", "wrap": "circular"}.get(mode, mode)
    return F.pad(x, _widths(whole.reshape(-1).tolist()), name, None if value is None else float(value.data))


def _clip(x: Any, *bounds: Any) -> Any:
    return F.clamp(x, *(None if each is None else Tensor(each).data.item() for each in bounds))


def _recurrent(kind: str) -> Operator:
    """Return an LSTM, a GRU or an RNN: its steps, the last states, and the last cells, each with an axis of sides."""
    # The rows of PyTorch's gates, which are ours, among those of the standard.
    gates = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}.get(kind, (0,))

    def operator(
        x: Tensor,
        to_input: Tensor,
        to_state: Tensor,
        bias: Any = None,
        *rest: Any,
        hidden_size: int,
        direction: str = "forward",
        layout: int = 0,
        **more: int,
    ) -> Any:
        if kind == "gru" and not more.get("linear_before_reset"):
            raise ValueError("a reset comes behind the product")
        if rest:
            raise ValueError("there are no peepholes")
        rows = np.concatenate([np.arange(hidden_size) + gate * hidden_size for gate in gates])
        sequence, is_reversed, found = x.transpose(0, 1) if layout else x, direction == "reverse", list[Tensor]()
        for side in range(len(to_input.data)):
            biases = [None] * 2 if bias is None else [bias[side][rows + at] for at in (0, len(gates) * hidden_size)]
            given = sequence, None, None, to_input[side][rows], to_state[side][rows], *biases
            found.append(apply(recurrent, *given, kind=kind, is_reversed=is_reversed or side == 1))
        steps = len(sequence.data)
        last = [F.stack([each[place] for each in found], 0) for place in range(steps, found[0].shape[0])]
        whole = F.stack([each[:steps] for each in found], 1)
        return [whole.permute((2, 0, 1, 3)), *(each.transpose(0, 1) for each in last)] if layout else [whole, *last]

    return operator


#: By the name of the operator; those that change types or nothing have no function here.
OPERATORS: Mapping[str, Operator] = {
    "Abs": F.abs,
    "Add": F.add,
    "AveragePool": _pool("avg"),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda *parts, axis: F.cat(parts, axis),
    "Conv": _convolution,
    "Div": _divide,
    "Exp": F.exp,
    "GRU": _recurrent("gru"),
    "Gather": _gather,
    "Gelu": F.gelu,
    "Gemm": _matrix,
    "LSTM": _recurrent("lstm"),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Log": F.log,
    "LogSoftmax": lambda x, axis=-1: F.log_softmax(x, axis),
    "MatMul": F.matmul,
    "Max": _of_two(F.maximum),
    "MaxPool": _pool("max"),
    "Min": _of_two(F.minimum),
    "Mul": F.multiply,
    "Neg": F.negate,
    "Pad": _pad,
    "Pow": F.power,
    "RNN": _recurrent("tanh"),
    "ReduceMax": _reduction(F.max),
    "ReduceMean": _reduction(F.mean),
    "ReduceMin": _reduction(F.min),
    "ReduceSum": _reduction(F.sum),
    "Relu": F.relu,
    "Reshape": _reshape,
    "Sigmoid": F.sigmoid,
    "Slice": _slice,
    "Softmax": lambda x, axis=-1: F.softmax(x, axis),
    "Softplus": F.softplus,
    "Sqrt": F.sqrt,
    "Squeeze": _squeeze,
    "Sub": F.subtract,
    "Tanh": F.tanh,
    "Transpose": lambda x, perm=None: F.permute(x, perm or range(x.ndim)[::-1]),
    "Unsqueeze": _unsqueeze,
    "Where": F.where,
}
