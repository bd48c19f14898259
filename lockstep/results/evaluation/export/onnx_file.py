"""Write a graph as an ONNX file; the only file that imports the onnx package, which is an extra."""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from lockstep.results.evaluation.export.onnx_nodes import OPERATOR_SET, OUTPUT, OnnxGraph
from lockstep.results.evaluation.export.trace import INPUT

#: The version of the file format that came with the operator set, so that older readers know it.
FORMAT_VERSION = 9


def onnx_bytes(
    graph: OnnxGraph,
    sample_shape: Sequence[int],
    output_shape: Sequence[int],
    metadata: Mapping[str, str],
    *,
    of_tokens: bool = False,
) -> bytes:
    """Return the content of the file, for any number of samples, checked by the checker of the package.

    Samples are float32, or tokens as int64.
    """
    kind = TensorProto.INT64 if of_tokens else TensorProto.FLOAT
    nodes = [
        helper.make_node(node.operator, node.inputs, [node.output], name=f"node.{number}", **node.attributes)
        for number, node in enumerate(graph.nodes)
    ]
    arrays = [numpy_helper.from_array(np.array(array, order="C"), name) for name, array in graph.arrays.items()]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "lockstep",
            [helper.make_tensor_value_info(INPUT, kind, ["samples", *sample_shape])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["samples", *output_shape])],
            arrays,
        ),
        opset_imports=[helper.make_opsetid("", OPERATOR_SET)],
        producer_name="lockstep",
        ir_version=FORMAT_VERSION,
    )
    helper.set_model_props(model, dict(metadata))
    checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content
