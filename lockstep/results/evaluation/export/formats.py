"""Export a trained model to other formats."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np

from lockstep.common.data.preparation import Preparation
from lockstep.common.errors import ModelError, UsageError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.safetensors import write
from lockstep.common.nn.module import Module
from lockstep.results.evaluation.export.trace import MORE, trace_of
from lockstep.runs.optional_packages import demand
from lockstep.runs.trained_model import Trained, dataset_of

Format = Literal["safetensors", "onnx", "npz"]


@dataclass(frozen=True)
class Exporter:
    """Writes one trained model to a file."""

    trained: Trained
    path: Path

    def write(self, to: Format) -> None:
        """Write the file atomically. Raises UsageError if the model or the folder does not allow it."""
        if not self.path.parent.is_dir():
            raise UsageError(f"cannot write {str(self.path)!r}: expected an existing folder, {str(self.path.parent)!r}")
        arrays = self.trained.layout.read(self.trained.weights)
        match to:
            case "safetensors":
                write(self.path, arrays, {"format": "pt", **self._metadata(self._preparation())})
            case "npz":
                content = BytesIO()
                np.savez(content, **arrays)  # type: ignore[arg-type]  # NumPy types them as if they were its own flags
                write_atomically(self.path, [content.getbuffer()])
            case "onnx":
                write_atomically(self.path, [self._onnx()])

    def _onnx(self) -> bytes:
        demand("onnx", "export", "--to onnx")
        # Imported here, since the extra may not be installed.
        from lockstep.results.evaluation.export.onnx_nodes import graph_of, onnx_bytes

        model = self.trained.model.module
        if not isinstance(model, Module):
            raise ModelError(
                "the model is one of PyTorch, which exports it itself: call torch.onnx.export(run.model, ...), or "
                "export with --format safetensors"
            )
        train = dataset_of(self.trained.job).train
        preparation = self._preparation()
        samples = preparation.images(np.resize(train.images[:MORE], (MORE, *train.sample_shape)))
        trace = trace_of(model, samples)
        graph = graph_of(trace, self.trained.layout.read(self.trained.weights))
        metadata = self._metadata(preparation)
        return onnx_bytes(graph, train.sample_shape, trace.shape[1:], metadata, of_tokens=train.is_tokens)

    def _preparation(self) -> Preparation:
        job = self.trained.job
        return Preparation.of(dataset_of(job).train) if job.normalize else Preparation(mean=0.0, std=1.0)

    def _metadata(self, preparation: Preparation) -> dict[str, str]:
        """Return what users of the file need to know: inputs are (x - mean) / std, with bytes divided by 255 first."""
        job = self.trained.job
        return {
            "run": self.trained.folder.name,
            "model": job.model_name(),
            "data": job.data,
            "mean": repr(preparation.mean),
            "std": repr(preparation.std),
            **self._classes(),
        }

    def _classes(self) -> dict[str, str]:
        """Return the names of the classes as a list in JSON, in the order of the outputs, if they have names."""
        names = dataset_of(self.trained.job).class_names
        return {"classes": json.dumps(names, ensure_ascii=False)} if names else {}
