"""Compute one micro-batch of a recorded run again, and report each layer, forward and backward.

The weights are brought to that step first. The micro-batch itself updates nothing. Of one with local steps, one of
these is reported, with the weights that the local steps before it lead to.
"""

import hashlib
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.checking.verification.recorded_run import RecordedRun
from lockstep.common.errors import UsageError
from lockstep.common.model.port import DrawKey
from lockstep.ps.setup import RunSetup
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError

Array = NDArray[Any]


class LayerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one array; of its values that are not finite, only their number."""

    shape: tuple[int, ...]
    #: The Euclidean norm, and the largest magnitude.
    norm: float
    largest: float
    nonfinite: int


class LayerReplay(msgspec.Struct, frozen=True, kw_only=True):
    """The output of one layer, and the gradients of its parameters."""

    name: str
    kind: str
    output: LayerFigures
    #: Of the layer's own parameters, by their qualified names.
    gradients: dict[str, LayerFigures]


class MicroBatchReplay(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one micro-batch, layer by layer in the order of computation."""

    run: str
    step: int
    micro_batch: int
    #: The local step of the micro-batch; None if it has only one.
    local_step: int | None = None
    #: The indices of the samples in the training set, and their labels.
    samples: list[int]
    labels: list[Any]
    #: The input of the model after normalisation and shifts, and its SHA-256.
    inputs: LayerFigures
    inputs_sha256: str
    #: Sum over the samples, as text if it is not finite; the value in the ledger, None if it has none for them: no such
    #: step, or one with local steps, of which the ledger has the sum.
    loss_sum: float | str
    recorded_loss_sum: float | None
    correct: int
    #: Number of classes or values to predict.
    targets: int
    layers: list[LayerReplay]
    #: The origin of the first number that is not finite; None if all are finite.
    first_nonfinite: str | None


def replay(run: RecordedRun, setup: RunSetup, step: int, micro_batch: int, local_step: int = 0) -> MicroBatchReplay:
    """Bring the shard, which holds the weights of an earlier step, to `step`, and inspect a micro-batch of it."""
    trainer = SingleProcessTrainer(setup)
    for before in range(setup.shard.updates, step):
        trainer.step(before)
    trainer.compute.turn(step)
    with np.errstate(all="ignore"):  # values that are not finite are what we look for
        return inspect(run, trainer.compute, step, micro_batch, local_step)


def inspect(run: RecordedRun, compute: Compute, step: int, micro_batch: int, local_step: int = 0) -> MicroBatchReplay:
    """Compute a micro-batch with the current weights, or one of its local steps, and observe all of it."""
    batches, local = compute.batches, compute.local
    if local is not None:
        try:
            local.advance(step, micro_batch, compute.weights, local_step)
        except NotFiniteError as error:
            raise UsageError(
                f"--local-step {local_step}: {error}: expected a local step up to that one, which shows where"
            ) from error
    batch = micro_batch * compute.job.local_steps + local_step
    indices = batches.sampler.indices(step, batch)
    images, targets = batches.training(indices, step, batch)
    seen = compute.engine.inspect(images, targets, DrawKey(compute.job.seed, step, batch))
    loss, outputs, _ = seen.outcome
    recorded = run.steps().get(step) if local is None else None
    return MicroBatchReplay(
        run=run.folder.name,
        step=step,
        micro_batch=micro_batch,
        local_step=None if local is None else local_step,
        samples=indices.tolist(),
        labels=batches.data.train.labels[indices].tolist(),
        inputs=figures_of(images),
        inputs_sha256=hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        loss_sum=loss if np.isfinite(loss) else str(loss),
        recorded_loss_sum=float(recorded.loss_sums()[micro_batch]) if recorded else None,
        correct=batches.objective.correct(outputs, targets),
        targets=batches.objective.count(targets),
        layers=[layer_of(*output, seen.gradients) for output in seen.layers],
        first_nonfinite=seen.first_nonfinite,
    )


def layer_of(name: str, kind: str, output: Array, gradients: dict[str, Array]) -> LayerReplay:
    """Return a layer with the gradients of its own parameters."""
    own = {
        parameter: figures_of(gradient)
        for parameter, gradient in gradients.items()
        if parameter.rpartition(".")[0] == name
    }
    return LayerReplay(name=name, kind=kind, output=figures_of(output), gradients=own)


def figures_of(array: Array) -> LayerFigures:
    finite = array[np.isfinite(array)].astype(np.float64)
    return LayerFigures(
        shape=tuple(array.shape),
        norm=float(np.sqrt(np.square(finite).sum())),
        largest=float(np.abs(finite).max(initial=0.0)),
        nonfinite=array.size - finite.size,
    )
