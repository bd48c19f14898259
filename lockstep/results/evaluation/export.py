"""A trained model in the formats of other programs."""

import json
from io import BytesIO
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from lockstep.common.data.records import fields_of
from lockstep.common.errors import ModelError, UsageError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.safetensors import write
from lockstep.common.nn.module import Module
from lockstep.runs.own_command import demand
from lockstep.runs.trained_model import Trained

Format = Literal["safetensors", "onnx", "npz", "zip"]


def write_model(trained: Trained, path: Path, to: Literal["safetensors", "onnx", "npz"]) -> None:
    """Write a trained model to a file, atomically. Raises UsageError if the model or the folder does not allow it."""
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: expected an existing folder, {str(path.parent)!r}")
    arrays = trained.arrays()
    match to:
        case "safetensors":
            write(path, arrays, {"format": "pt", **_metadata(trained)})
        case "npz":
            content = BytesIO()
            np.savez(content, **arrays)  # type: ignore[arg-type]  # NumPy types them as if they were its own flags
            write_atomically(path, [content.getbuffer()])
        case "onnx":
            write_atomically(path, [_onnx(trained)])


def _onnx(trained: Trained) -> bytes:
    model = trained.model.module
    # Before anything is asked to be installed for it.
    if not isinstance(model, Module):
        raise ModelError(
            "the model is one of PyTorch, which exports it itself: call torch.onnx.export(run.model, ...), or "
            "export with --format safetensors"
        )
    demand("onnx", "export", "--format onnx")
    # Imported here, since the extra may not be installed.
    from lockstep.results.evaluation import onnx_graph as onnx

    data = trained.data
    samples = data.samples(onnx.MORE)
    trace = onnx.trace_of(model, data.preparation.images(samples))
    targets = () if data.is_table else data.targets
    graph, metadata = onnx.graph_of(trace, trained.arrays(), targets), _metadata(trained)
    if data.is_table:
        return onnx.onnx_bytes(*onnx.with_table(graph, data, data.preparation), metadata)
    parts = fields_of(samples)
    inputs = [onnx.sample_port(name, part.shape[1:], of_tokens=part.dtype == np.int32) for name, part in parts.items()]
    return onnx.onnx_bytes(graph, inputs, [onnx.output_port(trace.shape[1:])], metadata)


def _metadata(trained: Trained) -> dict[str, str]:
    """Return what users of the file need to know: inputs are (x - mean) / std, with bytes divided by 255 first.

    The names of the classes, if they have names, are a list in JSON, in the order of the outputs. Of a table there are
    the columns that are learned from and predicted, as its dataset.json has them: an input is made of a column first,
    by the place of a text in `categories`, and (x - mean) / std of the column. If a model has several inputs, `inputs`
    has the two numbers of each by its name. Numbers that are predicted are outputs · std + mean of their `targets`, or
    of the only one; a graph of ONNX has done that already.
    """
    data, preparation, names = trained.data, trained.data.preparation, trained.data.class_names
    columns = {"columns": data.columns} if data.is_table else {}
    columns |= {"targets": data.targets} if data.is_table or data.targets else {}
    several = {name: {"mean": each.mean, "std": each.std} for name, each in preparation.inputs.items()}
    scale = {"inputs": json.dumps(several, ensure_ascii=False)} if several else {}
    return {
        "run": trained.folder.name,
        "model": trained.job.model_name(),
        # By its name: the file may go to other people, and its folder is of this machine.
        "data": Path(data.origin.source).name,
        **(scale or {"mean": repr(preparation.mean), "std": repr(preparation.std)}),
        **({"classes": json.dumps(names, ensure_ascii=False)} if names else {}),
        **{name: msgspec.json.encode(each).decode() for name, each in columns.items()},
    }
