"""Computes one micro-batch of a recorded run again and looks into it: layer by layer, forward and backward.

The weights are brought to that step first. Nothing is updated by the piece that is looked at.
"""

import hashlib
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.autograd.graph import observe
from common.autograd.primitives.primitive import Primitive
from common.autograd.tensor import Tensor
from common.nn.module import Module
from common.runtime.clock import Clock
from lockstep.runs.recorded import RecordedRun
from lockstep.runs.single_process import SingleProcessTrainer
from ps.setup import RunSetup
from worker.compute import Compute

Array = NDArray[Any]


class LayerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One array in numbers; of what is not finite in it only the count."""

    shape: tuple[int, ...]
    #: The Euclidean norm, and the largest magnitude.
    norm: float
    largest: float
    nonfinite: int


class LayerReplay(msgspec.Struct, frozen=True, kw_only=True):
    """One layer's output, in the order in which the layers were done."""

    name: str
    kind: str
    output: LayerFigures
    #: Of its own parameters, by their qualified names.
    gradients: dict[str, LayerFigures]


class MicroBatchReplay(msgspec.Struct, frozen=True, kw_only=True):
    """One micro-batch."""

    run: str
    step: int
    micro_batch: int
    #: The places of the samples in the training set, and what is to be told of them, in order.
    samples: list[int]
    labels: list[Any]
    #: What the model was given, after normalisation and shifts: in numbers, and its SHA-256.
    inputs: LayerFigures
    inputs_sha256: str
    #: Sum over the samples, as text where it is not finite; what the ledger has, None where it has no such step.
    loss_sum: float | str
    recorded_loss_sum: float | None
    correct: int
    #: Classes, or numbers, that were to be told.
    targets: int
    layers: list[LayerReplay]
    #: Where the first number arose that is not finite; None where all are finite.
    first_nonfinite: str | None


class Watcher:
    """Sees each operation and each layer's output as they are computed."""

    def __init__(self) -> None:
        self.outputs: list[tuple[str, str, Array]] = []
        #: The first operation with a result that is not finite, and whether that was in the forward pass.
        self.operation = ""
        self.layer = ""

    def operation_done(
        self, primitive: Primitive, direction: str, function: Any, *arguments: Any, **options: Any
    ) -> Any:
        """Carry out one operation."""
        result = function(*arguments, **options)
        # A derivative may write into memory that it was given.
        arrays = result if isinstance(result, tuple) else (result, options.get("out"))
        if not self.operation and not all(is_finite(array) for array in arrays):
            self.operation = f"{primitive.name}, {direction}"
        return result

    def layer_done(self, name: str, module: Module, output: Any) -> None:
        """Take in a layer's output."""
        if isinstance(output, Tensor):
            kind = type(module).__name__
            self.outputs.append((name, kind, output.data.copy()))
            if not self.layer and not is_finite(output.data):
                self.layer = f"layer {name} ({kind})" if name else f"the model ({kind})"

    def first_nonfinite(self, gradients: dict[str, Array]) -> str | None:
        """Return where the first number arose that is not finite."""
        if self.layer:
            return f"{self.layer}, in operation {self.operation or 'unknown'}"
        if self.operation.endswith("forward"):
            return f"the loss, in operation {self.operation}"
        odd = [name for name, gradient in gradients.items() if not is_finite(gradient)]
        if odd:
            # Backward comes from the end: the last parameter is the first to have its gradient.
            return f"the gradient of {odd[-1]}, in operation {self.operation or 'unknown'}"
        return f"operation {self.operation}" if self.operation else None


def replay(run: RecordedRun, opening: RunSetup, clock: Clock, step: int, micro_batch: int) -> MicroBatchReplay:
    """Bring the opening's shard, which holds the weights of a step before, to `step`; look into a micro-batch of it."""
    trainer = SingleProcessTrainer(opening, clock)
    for before in range(opening.shard.updates, step):
        trainer.step(before)
    trainer.compute.turn(step)
    with np.errstate(all="ignore"):  # what is not finite is what is looked for
        return look_into(run, trainer.compute, step, micro_batch)


def look_into(run: RecordedRun, compute: Compute, step: int, micro_batch: int) -> MicroBatchReplay:
    """Compute a micro-batch on the weights at hand, by the engine, which can be watched."""
    indices = compute.sampler.indices(step, micro_batch)
    images, targets = compute.batch(indices, step, micro_batch)
    watcher, model = Watcher(), compute.model
    model.train()
    model.zero_grad()
    model.reseed(compute.job.seed, step, micro_batch)
    with observe(watcher.operation_done), model.observe_outputs(watcher.layer_done):
        outputs = model(Tensor(images))
        loss = compute.objective.training_loss(outputs, targets)
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    recorded = run.steps().get(step)
    return MicroBatchReplay(
        run=run.folder.name,
        step=step,
        micro_batch=micro_batch,
        samples=indices.tolist(),
        labels=compute.data.train.labels[indices].tolist(),
        inputs=figures_of(images),
        inputs_sha256=hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        loss_sum=float(loss.data) if np.isfinite(loss.data) else str(loss.data),
        recorded_loss_sum=float(recorded.loss_sums()[micro_batch]) if recorded else None,
        correct=compute.objective.correct(outputs.data, targets),
        targets=targets.size,
        layers=[layer_of(*output, gradients) for output in watcher.outputs],
        first_nonfinite=watcher.first_nonfinite(gradients),
    )


def layer_of(name: str, kind: str, output: Array, gradients: dict[str, Array]) -> LayerReplay:
    """Return a layer with the gradients of the parameters that are directly in it."""
    own = {
        parameter: figures_of(gradient)
        for parameter, gradient in gradients.items()
        if parameter.rpartition(".")[0] == name
    }
    return LayerReplay(name=name, kind=kind, output=figures_of(output), gradients=own)


def figures_of(array: Array) -> LayerFigures:
    """Return an array in numbers."""
    finite = array[np.isfinite(array)].astype(np.float64)
    return LayerFigures(
        shape=tuple(array.shape),
        norm=float(np.sqrt(np.square(finite).sum())),
        largest=float(np.abs(finite).max(initial=0.0)),
        nonfinite=array.size - finite.size,
    )


def is_finite(value: Any) -> bool:
    """Tell whether an array holds finite numbers only; anything else counts as finite."""
    return not isinstance(value, np.ndarray | np.generic) or value.dtype.kind != "f" or bool(np.isfinite(value).all())
