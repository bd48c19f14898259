"""A run as its folder records it, finished or not: to be checked, computed again, or inspected. Writes nothing.

One micro-batch can be computed again, with a report of each layer, forward and backward. The weights are brought to
that step first. The micro-batch itself updates nothing. Of one with local steps, one of these is reported, with the
weights that the local steps before it lead to."""

import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.checking.comparison import SUBJECTS
from lockstep.common.data.source import load
from lockstep.common.errors import JobError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.model.port import DrawKey
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder
from lockstep.ps.checkpoint.resuming import fill
from lockstep.ps.records.ledger import Line, StepDone, WorkerIn, with_workers
from lockstep.ps.records.receipt import Receipt, SubjectFile, receipt_of
from lockstep.ps.records.run_folder import CHECKPOINTS, JOB, RECEIPT, read_ledger, read_statement
from lockstep.ps.run.description import DataDescription
from lockstep.ps.setup import RunSetup, open_run
from lockstep.runs.run_dir import (
    has_begun,
    recorded_job,
    told_folder,
    trusted_source,
)
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.runs.trained_model import demand_data, description_of, job_with_data
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError


class RecordedRun(msgspec.Struct, frozen=True):
    """The records in a run's folder."""

    folder: Path
    job: Job
    receipt: Receipt
    #: The files that the receipt is about.
    subjects: list[SubjectFile]
    #: The ledger's.
    lines: list[Line]
    #: The current place of its data, if that is not the one in the job.
    data: str | None = None

    def demand_data(self) -> None:
        """Raise `DataError` if the data of the run is neither given nor where it was trained."""
        if self.data is None:
            demand_data(self.folder, self.job)

    def description(self) -> DataDescription:
        """Return the run's data without its samples; raises as `description_of`."""
        return description_of(self.folder, self.job if self.data is None else replace(self.job, data=self.data))

    def fingerprint(self) -> Fingerprint:
        return self.receipt.fingerprint(str(self.folder / RECEIPT))

    def steps(self) -> dict[int, StepDone]:
        return {line.step: line for line in self.lines if isinstance(line, StepDone)}

    def workers(self) -> dict[int, dict[int, WorkerIn]]:
        """Return the workers that took part in each step, by rank."""
        return {line.step: workers for line, workers in with_workers(self.lines) if isinstance(line, StepDone)}


def read_run(folder: Path, data: str | None = None) -> RecordedRun:
    """Return what a folder records; `JobError` if it is not a run's, `FileFormatError` if a file of it is damaged.

    `data` is where the run's data is now, None if it is where it was; `DataError` if it is other data.
    """
    if not has_begun(folder):
        raise JobError(f"{str(folder)!r} holds no run: expected a run folder, with its {JOB}")
    job = recorded_job(folder)
    job_with_data(folder, job, data)  # raises if it is other data
    statement = read_statement(folder)
    return RecordedRun(folder, job, statement.predicate, statement.subject, read_ledger(folder), data)


def open_again(run: RecordedRun, *, allows_mixed_numerics: bool) -> RunSetup:
    """Build what the run began with; a `UsageError` names both values if something here is not the run's."""
    options = RunOptions(allow_mixed_numerics=allows_mixed_numerics)
    source = trusted_source(run.folder, run.job)
    run.demand_data()
    data = load(run.data or run.job.data, is_checked=True)
    setup = open_run(run.folder.name, run.job, data, options, source, told_folder(run.folder))
    here, there = receipt_of(setup.info, []), run.receipt
    for name, what in SUBJECTS.items():
        was, is_ = getattr(there, name), getattr(here, name)
        if was != is_:
            advice = _job_advice(run) if name == "job_sha256" else "expected the same"
            raise UsageError(f"the {what} is not the run's: SHA-256 {was[:12]}… then, {is_[:12]}… now: {advice}")
    differences = other_numerics(run, setup)
    if differences and not allows_mixed_numerics:
        raise UsageError(
            f"the numerics differ from the run's, so other bits would prove nothing: {differences}: use the run's "
            "machine and version, or add --allow-mixed-numerics"
        )
    return setup


def _job_advice(run: RecordedRun) -> str:
    """Return what to do if the job of a run has another digest than its receipt: versions differ in a job's values."""
    folder, again = shlex.quote(str(run.folder)), shlex.quote(f"{run.folder}-again")
    return (
        f"{JOB} was changed, or another version of lockstep wrote it, whose jobs had other values: use that "
        f"version, or train it with this one, `lockstep train {folder}/{JOB} --run-dir {again}`, and compare both, "
        f"`lockstep verify {again} --against {folder}`"
    )


def other_numerics(run: RecordedRun, setup: RunSetup) -> str:
    """Return how the numerics here differ from those of a run, empty if they do not."""
    differences = run.fingerprint().differences(setup.info.fingerprint)
    return "; ".join(f"{name} {was!r} in the run, {is_!r} here" for name, was, is_ in differences)


def load_checkpoint_before(setup: RunSetup, folder: Path, step: int, say: Callable[[str], None]) -> None:
    """Load the last whole checkpoint up to a step into the shard of `setup`, if there is one."""
    checkpoint = next(CheckpointFolder(folder / CHECKPOINTS, say).back_from(step), None)
    if checkpoint is not None:
        fill(setup.shard, checkpoint, setup)


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
    #: The input of the model after normalisation and shifts, by name if it has several; and the SHA-256 of all.
    inputs: LayerFigures | dict[str, LayerFigures]
    inputs_sha256: str
    #: Sum over the samples, as text if it is not finite; the value in the ledger, None if it has none for them: no such
    #: step, or one with local steps, of which the ledger has the sum.
    loss_sum: float | str
    recorded_loss_sum: float | None
    #: The number of right predictions; None without an accuracy.
    correct: int | None
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
    names, has_accuracy = images.dtype.names, "accuracy" in batches.objective.metrics.by_name
    return MicroBatchReplay(
        run=run.folder.name,
        step=step,
        micro_batch=micro_batch,
        local_step=None if local is None else local_step,
        samples=indices.tolist(),
        labels=batches.data.train.labels[indices].tolist(),
        inputs=figures_of(images) if names is None else {name: figures_of(images[name]) for name in names},
        inputs_sha256=hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        loss_sum=loss if np.isfinite(loss) else str(loss),
        recorded_loss_sum=float(recorded.loss_sums()[micro_batch]) if recorded else None,
        correct=batches.objective.correct(outputs, targets) if has_accuracy else None,
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
