"""Training on arrays that this process holds, which leaves nothing on disk: here, or with workers if that is quicker.

Knows nothing of scikit-learn. The bits are the same, whichever processes compute.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lockstep.api.exported_model import ModelText
from lockstep.api.job_inputs import job_inputs
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.source import with_validation
from lockstep.common.errors import DivergedError
from lockstep.common.files.safetensors import read
from lockstep.common.job.job import Job
from lockstep.common.job.metrics import score_of
from lockstep.common.job.objective import Objective
from lockstep.common.job.tally import Tally
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.launch.cluster import train_on
from lockstep.launch.placement import quickest, step_seconds
from lockstep.launch.process_backend import LocalBackend
from lockstep.launch.supervision.template import ProcessTemplate
from lockstep.ps.coordinator.failures import diverged_text
from lockstep.ps.records.recorder import NO_TRANSPORT, MetricsRecorder, Setting
from lockstep.ps.records.run_folder import WEIGHTS, RunResult
from lockstep.ps.setup import RunSetup, open_run
from lockstep.results.display import Display
from lockstep.runs.session import Destination
from lockstep.runs.single_process import SerialRun
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError

#: The name of a run without a folder.
UNNAMED = "estimator"

#: Arrays by name.
Arrays = dict[str, Vector]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A network that is trained pass by pass on data that comes in parts, and all that the next pass needs.

    An estimator is pickled with it; a pickled struct would name a function of msgspec.
    """

    weights: Arrays
    #: The optimizer's slots by name, each as long as all trained values; empty before the first update.
    slots: Arrays
    moments: tuple[float, float]
    passes: int
    #: Since the slots were empty.
    updates: int
    #: Of the last pass, over its samples: loss, accuracy or R², and the digest of the weights.
    figures: dict[str, Any]


class TrainingTask(msgspec.Struct, frozen=True, kw_only=True):
    """A training task."""

    job: Job
    data: TrainTest
    #: The model's source if a file is to hold it.
    text: ModelText | None = None
    #: The weights to begin with, instead of those that the seed gives.
    initial: Arrays | None = None

    @contextmanager
    def opened(
        self, options: RunOptions, moments: tuple[float, float] | None = None
    ) -> Iterator[tuple[RunSetup, Path]]:
        """Give the setup of a run, and a folder for its files that is removed at the end."""
        with (
            tempfile.TemporaryDirectory(prefix="lockstep-") as folder,
            job_inputs(Path(folder), self.initial, None, self.text) as paths,
        ):
            job = msgspec.structs.replace(self.job, **paths)
            yield open_run(UNNAMED, job, _prepared(job, self.data, moments), options), Path(folder)


#: A trained network, and the result; its `workers` are 0 if this process computed.
Outcome = tuple[Stream, RunResult]


@computing()
@kept_numerics()
def train(task: TrainingTask, workers: int, cores: int, clock: Clock, display: Display) -> Outcome:
    """Train to the end with at most so many workers; raises as `fit`.

    Workers train if, by the first steps, which are made here, they would be done much sooner although they have to be
    started.
    """
    take_numerics(task.job.numerics)
    if min(workers, cores, task.job.micro_batches) > 1:
        with task.opened(RunOptions()) as (setup, folder):
            try:
                most = quickest(step_seconds(setup, clock), setup, workers, cores)
            except Exception:  # noqa: BLE001  # a fault of the job, or of the user's model: the training reports it
                most = 0
            if most:
                return train_by_workers(setup, task.data, most, folder, display)
    with task.opened(RunOptions()) as (setup, _):
        return train_here(setup, clock, None if display.is_silent else display.show)


def _prepared(job: Job, data: TrainTest, moments: tuple[float, float] | None = None) -> TrainTest:
    """Return the data with its validation set taken from it, and with its moments, which are then computed once."""
    split = with_validation(data, job.validation_split, job.seed)
    if moments is None:
        found = Preparation.of(split.train) if job.normalize else Preparation(0.0, 1.0)
        moments = found.mean, found.std
    return split.with_moments(moments)


def train_here(setup: RunSetup, clock: Clock, watch: Callable[[Status], None] | None) -> Outcome:
    """Train in this process; `watch` sees each step, if it is needed: a status takes a fiftieth of a small step."""
    setting = Setting(transport=NO_TRANSPORT, started=clock.now())
    recorder = MetricsRecorder(setup.info, setting, setup.layout, folder=None)
    recorder.begin(setup.shard.digest())
    result = SerialRun(setup, recorder, clock, watch).train()
    weights = setup.shard.weights if recorder.best is None else recorder.best
    return _continued(setup, _copies(setup.layout.read(weights)), result), result


def train_by_workers(setup: RunSetup, data: TrainTest, workers: int, folder: Path, display: Display) -> Outcome:
    """Train with a server and workers that are started for this, and end with it."""
    arrays = {
        f"{kind}_{part}": values
        for part, each in (("train", data.train), ("test", data.test))
        for kind, values in (("x", each.images[:]), ("y", each.labels))
    }
    launch = RunOptions(workers=workers, checkpoint_keep=0)
    with job_inputs(folder, None, arrays) as paths:
        job = msgspec.structs.replace(setup.info.job, **paths)
        destination = Destination(folder=folder / "run", options=launch)
        with ProcessTemplate.of("server", "worker", data=job.data) as template:
            result = train_on(LocalBackend(launch, template), job, destination, display)
        weights, _ = read(destination.folder / WEIGHTS)
        return _continued(setup, weights, result), result


def _continued(setup: RunSetup, weights: Arrays, result: RunResult) -> Stream:
    """Return a trained network from which passes continue, with a new optimizer."""
    return Stream(
        weights=weights,
        slots={},
        moments=_moments(setup),
        passes=len(result.history),
        updates=0,
        figures={"loss": result.history[result.weights_epoch - 1].loss},
    )


def _moments(setup: RunSetup) -> tuple[float, float]:
    assert setup.data.train.moments is not None  # `_prepared` has put them there
    return setup.data.train.moments


def _copies(arrays: Mapping[str, Vector]) -> Arrays:
    return {name: array.copy() for name, array in arrays.items()}


@computing()
@kept_numerics()
def train_pass(task: TrainingTask, before: Stream | None) -> Stream:
    """Train in this process, with each sample of the data once, from where the pass before ended.

    So many passes over the same data give the weights of as many epochs of one run. Raises as `fit`.
    """
    take_numerics(task.job.numerics)
    with task.opened(RunOptions(), None if before is None else before.moments) as (setup, _):
        shard, passes = setup.shard, 0
        if before is not None:
            for slot in shard.slots:
                setup.layout.write(slot, before.weights)
            for name, values in before.slots.items():
                shard.state[name][:] = values
            passes, shard.updates = before.passes, before.updates
            shard.refresh_served()
        tally = _pass_tally(setup, passes)
        figures = _pass_figures(setup, tally)
    return Stream(
        weights=_copies(setup.layout.read(shard.weights)),
        slots=_copies(shard.state),
        moments=_moments(setup),
        passes=passes + 1,
        updates=shard.updates,
        figures=figures,
    )


def _pass_figures(setup: RunSetup, tally: Tally) -> dict[str, Any]:
    """Return the figures of a pass, under the names that an epoch's have."""
    objective = Objective(setup.info.job)
    score = score_of(objective.metrics, tally, objective.guess(setup.data.train))
    named = {"loss": tally.loss, "accuracy": score.accuracy, "r2": score.r2}
    return {
        **{name: value for name, value in named.items() if value is not None},
        **score.others,
        "weights_sha256": setup.shard.digest(),
    }


def _pass_tally(setup: RunSetup, passes: int) -> Tally:
    """Make the steps of the pass after so many others; return the tally of its samples."""
    shard, job, total = setup.shard, setup.info.job, Tally()
    compute, whole = Compute(job, setup.model, setup.data, shard.served, own=setup.own), Node(0, job.micro_batches)
    each = setup.info.plan.steps_per_epoch
    for step in range(passes * each, (passes + 1) * each):
        # The optimizer counts all updates; the sampler and dropout count as if all passes had been as long as this one.
        compute.turn(shard.updates)
        try:
            sums, tally = compute.train(step, whole)
        except NotFiniteError as error:
            text = diverged_text("train", shard.updates, error.micro_batch, error.layer, error.quantity)
            raise DivergedError(text) from error
        shard.update_by(sums, shard.updates, tally.divisor)
        total += tally
        if shard.not_finite is not None:
            raise DivergedError(
                f"the weights, first of {setup.layout.name_at(shard.not_finite)!r}, are not finite after update "
                f"{shard.updates}, although every loss was: lower lr or set clip_norm"
            )
    return total
