"""Runs a job on a cluster of processes, the real thing, and reads from the run's records what its steady steps took."""

import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from common.data.source import load
from common.errors import RunError
from common.job.job import Job
from lockstep.launch.cluster import Cluster
from lockstep.launch.process_backend import LocalBackend
from lockstep.runs.launch import Launch
from lockstep.runs.session import Destination
from ps.records.metrics import METRICS
from ps.records.run_folder import RunResult
from ps.run.timing import Split, StepTime, TimeBook

#: Steps at the beginning of a run that do not count: buffers are made, caches filled.
WARM_UP = 20

#: Training images in memory, at least, and test images: evaluations cost time and tell nothing here.
SAMPLES, TEST_SAMPLES = 8192, 64

#: Steps of an epoch, at least: each epoch's first step does not count.
EPOCH_STEPS = 16


class TimedStep(msgspec.Struct, frozen=True):
    """What a run's metrics say of a training step; see `ps.run.timing.StepTime`."""

    epoch: int
    step: int
    round_s: float
    mean_s: float
    slowest_s: float
    update_s: float

    def time(self) -> StepTime:
        """Return the times without the update."""
        return StepTime(round_s=self.round_s, mean_s=self.mean_s, slowest_s=self.slowest_s)


@dataclass
class TimedRuns:
    """Runs of one job in one way, and the steps of each."""

    results: list[RunResult] = field(default_factory=list)
    steps: list[list[TimedStep]] = field(default_factory=list)

    def steady(self) -> list[float]:
        """Return the seconds of the steps that count: without the warm-up and what follows an evaluation."""
        return [step.round_s for step, counts in self._marked() if counts]

    def split(self) -> Split:
        """Return where the time went, of the half of the steps between the quartiles: a disturbance says nothing."""
        low, _, high = statistics.quantiles(self.steady(), n=4, method="inclusive")
        book = TimeBook()
        for step, counts in self._marked():
            book.add(step.time(), step.update_s, is_counted=counts and low <= step.round_s <= high)
        split = book.split()
        assert split is not None  # the median is between the quartiles
        return split

    def _marked(self) -> Iterator[tuple[TimedStep, bool]]:
        for steps in self.steps:
            before = 0
            for step in steps:
                yield step, step.step >= WARM_UP and step.epoch == before
                before = step.epoch


def write_data(folder: Path, global_batch: int) -> Path:
    """Write the first images of MNIST, enough for steps of so many samples; return the path."""
    mnist = load("mnist")
    count = min(len(mnist.train), max(SAMPLES, EPOCH_STEPS * global_batch))
    path = folder / f"digits-{count}.npz"
    if not path.exists():
        train, test = mnist.train, mnist.test
        x_test, y_test = test.images[:TEST_SAMPLES], test.labels[:TEST_SAMPLES]
        np.savez(path, x_train=train.images[:count], y_train=train.labels[:count], x_test=x_test, y_test=y_test)
    return path


def timed_run(job: Job, launch: Launch, folder: Path, say: Callable[[str], None]) -> tuple[RunResult, list[TimedStep]]:
    """Run the job once; return its result and its steps. What it leaves in `folder` is removed."""
    run_dir = folder / "run"
    try:
        # Without checkpoints: they would come at the end of these short epochs only, and tell nothing of a step.
        launch = msgspec.structs.replace(launch, checkpoint_keep=0)
        destination = Destination(folder=run_dir, launch=launch)
        result = Cluster(job, destination, say=say, watch=lambda status: None, backend=LocalBackend(launch)).run()
        lines = (run_dir / METRICS).read_bytes().splitlines()
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
    return result, [msgspec.json.decode(line, type=TimedStep) for line in lines if line.startswith(b'{"kind":"step"')]


@dataclass
class Hashes:
    """The weights that jobs led to: the same job gives the same bits, whoever measures."""

    known: dict[str, str] = field(default_factory=dict)

    def check(self, job: Job, result: RunResult) -> None:
        """Book the weights; `RunError` where the same job gave others before."""
        before = self.known.setdefault(job.digest(), result.weights_sha256)
        if before != result.weights_sha256:
            raise RunError(
                f"one job gave the weights {before[:12]}… and {result.weights_sha256[:12]}…, the latter with "
                f"{result.workers} workers over {result.transport}: expected the same bits; please report this"
            )
