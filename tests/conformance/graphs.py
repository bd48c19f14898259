"""Compares exported graphs, as onnxruntime computes them, with our functions and layers, by PyTorch's samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnxruntime as runtime  # type: ignore[import-untyped]
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

from lockstep.common import nn
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.errors import ModelError
from lockstep.common.nn.module import Module
from lockstep.results.evaluation.onnx_graph import graph_of, onnx_bytes, output_port, sample_port, trace_of
from tests.conformance.functions import FUNCTIONS
from tests.conformance.modules import layer_of
from tests.conformance.operations import REFUSALS, Outcome, Result, ours, refused

#: Differences that rounding explains, of float32.
RTOL, ATOL = 1e-4, 1e-5

#: Samples from which a graph is made, and others with which it is tried.
TRACED, TRIED = 3, 5


class Applied(Module):
    """A model of one function, with the other operands of a sample."""

    def __init__(self, function: Callable[..., Any], others: Sequence[Any], options: Mapping[str, Any]) -> None:
        super().__init__()
        self._call = function, others, options

    def forward(self, x: Tensor) -> Any:
        function, others, options = self._call
        return function(x, *others, **options)


def graph_results(names: Sequence[str] = (), most: int | None = None) -> Iterator[Result]:
    """Yield the outcomes of all functions and layers, or of some, that compute a result for each row of a sample."""
    for operation in op_db:
        if operation.name in FUNCTIONS and (not names or f"onnx {operation.name}" in names):
            torch.manual_seed(0)
            samples = operation.sample_inputs("cpu", torch.float32, requires_grad=False)
            yield from _some((_of_function(operation.name, sample) for sample in samples), most)
    for info in module_db:
        name = info.module_cls.__name__
        if name in nn.__all__ and (not names or f"onnx nn.{name}" in names):
            torch.manual_seed(0)
            samples = info.module_inputs_func(info, "cpu", torch.float32, requires_grad=False, training=False)
            yield from _some((_of_layer(info.module_cls, sample) for sample in samples), most)


def _some(found: Iterator[Result | None], most: int | None) -> Iterator[Result]:
    yield from islice((each for each in found if each is not None), most)


def _of_function(name: str, sample: Any) -> Result | None:
    others, options = ours(list(sample.args), []), {key: ours(value, []) for key, value in sample.kwargs.items()}
    return _result(f"onnx {name}", Applied(FUNCTIONS[name], others, options), sample.input)


def _of_layer(kind: Any, sample: Any) -> Result | None:
    built, given = sample.constructor_input, sample.forward_input
    if len(given.args) != 1 or given.kwargs:
        return None
    try:
        layer = layer_of(kind.__name__, built, kind(*built.args, **built.kwargs).eval())
    except REFUSALS:
        return None
    return _result(f"onnx nn.{kind.__name__}", layer.eval(), given.args[0])


def _result(name: str, model: Module, given: Any) -> Result | None:
    """Return the outcome of a model of samples (rows, …), None if it is no such model."""
    if not isinstance(given, torch.Tensor) or given.dtype != torch.float32 or given.ndim < 2 or not given.numel():
        return None
    rows = np.resize(given.numpy(), (TRACED, *given.shape[1:]))
    tried = np.resize(rows[::-1] * np.float32(0.75), (TRIED, *given.shape[1:]))
    try:
        with np.errstate(all="ignore"), no_grad():
            apart = [model(Tensor(tried[row : row + 1])) for row in range(TRIED)]
            expected = model(Tensor(tried))
    except REFUSALS:
        return None
    if not isinstance(expected, Tensor) or not _is_each(apart, expected):
        return None
    try:
        return _compared(name, model, rows, tried, expected.data)
    except ModelError as error:
        return refused((name, [], {}, error))
    except Exception as error:  # noqa: BLE001  # of any kind: that is what is looked for
        return Result(name, Outcome.CRASHED, f"{type(error).__name__}: {error}"[:200])


def _is_each(apart: Sequence[Tensor], expected: Tensor) -> bool:
    """Tell whether a result has a row for each sample, which does not depend on the others."""
    if not apart[0].ndim or len(apart[0].data) != 1 or expected.shape != (TRIED, *apart[0].shape[1:]):
        return False
    return np.allclose(np.concatenate([each.data for each in apart]), expected.data, RTOL, ATOL, equal_nan=True)


def _compared(name: str, model: Module, rows: Any, tried: Any, expected: Any) -> Result:
    trace = trace_of(model, rows)
    ports = [sample_port("", rows.shape[1:])], [output_port(trace.shape[1:])]
    content = onnx_bytes(graph_of(trace, model.state_dict()), *ports, {})
    (found,) = runtime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"samples": tried})
    if found.shape != expected.shape:
        return Result(name, Outcome.DIFFERENT, f"shape {found.shape} instead of {expected.shape}")
    if not np.allclose(found, expected, RTOL, ATOL, equal_nan=True):
        return Result(name, Outcome.DIFFERENT, f"{np.nanmax(np.abs(found - expected)):.3g} off")
    return Result(name, Outcome.EQUAL)
