"""Put what became of a table's columns, and what becomes of the outputs, into the graph of a model.

The graph has an input for each column, as it is in a table, and its outputs are predictions as we print them. Values
are scaled as float64, and rounded to float32 where our samples are: so both have the same samples, bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from lockstep.common.data.columns import Column, ColumnKind
from lockstep.common.data.folder import FolderManifest
from lockstep.common.data.preparation import Preparation
from lockstep.results.evaluation.export.onnx_nodes import OUTPUT, TABLES, OnnxGraph, Port
from lockstep.results.evaluation.export.trace import INPUT
from lockstep.results.evaluation.predictor import class_names_of

#: The outputs: the likeliest class and the probabilities of all, or the numbers in the units of the table.
CLASS, PROBABILITIES, PREDICTIONS = "class", "probabilities", "predictions"


def with_table(
    graph: OnnxGraph, manifest: FolderManifest, preparation: Preparation
) -> tuple[OnnxGraph, list[Port], list[Port]]:
    """Return the graph from columns to predictions, with its inputs and outputs."""
    whole = OnnxGraph(arrays=dict(graph.arrays), prefix="table.")
    inputs = [_port(column) for column in manifest.columns]
    samples = _samples(whole, manifest.columns)
    _prepare(whole, samples, preparation)
    whole.nodes += graph.nodes
    unusable = _unusable(whole, samples)
    outputs = _classes(whole, manifest, unusable) if manifest.classes else _numbers(whole, manifest.targets, unusable)
    return whole, inputs, outputs


def _port(column: Column) -> Port:
    return Port(column.name, TensorProto.STRING if column.kind is ColumnKind.CATEGORY else TensorProto.DOUBLE)


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


def _classes(graph: OnnxGraph, manifest: FolderManifest, unusable: str) -> list[Port]:
    shares = graph.add("Softmax", [OUTPUT], axis=-1)
    graph.add("Where", [unusable, graph.constant(np.float32(np.nan)), shares], PROBABILITIES)
    names = class_names_of(manifest)
    likeliest = graph.add("ArgMax", [OUTPUT], axis=-1, keepdims=1)
    place = graph.add("Where", [unusable, graph.constant(np.int64(-1)), likeliest])
    table: dict[str, Any] = {"keys_int64s": list(range(len(names))), "values_strings": names, "default_string": ""}
    graph.add("LabelEncoder", [graph.add("Squeeze", [place, graph.integers(1)])], CLASS, domain=TABLES, **table)
    return [Port(CLASS, TensorProto.STRING), Port(PROBABILITIES, TensorProto.FLOAT, (len(names),))]


def _numbers(graph: OnnxGraph, targets: Sequence[Column], unusable: str) -> list[Port]:
    mean, std = (np.array([getattr(target, name) for target in targets], np.float64) for name in ("mean", "std"))
    scaled = graph.add("Mul", [graph.add("Cast", [OUTPUT], to=TensorProto.DOUBLE), graph.constant(std)])
    numbers = graph.add("Add", [scaled, graph.constant(mean)])
    graph.add("Where", [unusable, graph.constant(np.float64(np.nan)), numbers], PREDICTIONS)
    return [Port(PREDICTIONS, TensorProto.DOUBLE, (len(targets),))]
