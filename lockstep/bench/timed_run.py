"""Run a job on a cluster of processes, and read the times of its steady steps from the metrics of the run."""

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
from lockstep.runs.launch_config import Launch
from lockstep.runs.session import Destination
from ps.records.metrics import StepRecord, read_metrics
from ps.records.run_folder import RunResult
from ps.run.timing import Split, StepTimeTotals

#: Steps at the beginning of a run that do not count, while buffers are made and caches filled.
WARM_UP = 20

#: Fewest training images in memory, and test images: few, because evaluations are not measured.
SAMPLES, TEST_SAMPLES = 8192, 64

#: Fewest steps per epoch, since the first step of an epoch does not count.
EPOCH_STEPS = 16


@dataclass
class TimedRuns:
    """Runs of one job with one launch, and the steps of each."""

    results: list[RunResult] = field(default_factory=list)
    steps: list[list[StepRecord]] = field(default_factory=list)

    def steady(self) -> list[float]:
        """Return the seconds of the steps that count, without the warm-up and the step after an evaluation."""
        return [step.round_s for step, counts in self._counted() if counts]

    def split(self) -> Split:
        """Return where the time went in the steps between the quartiles, so that disturbances are left out."""
        low, _, high = statistics.quantiles(self.steady(), n=4, method="inclusive")
        book = StepTimeTotals()
        for step, counts in self._counted():
            book.add(step.time(), step.update_s, is_counted=counts and low <= step.round_s <= high)
        split = book.split()
        assert split is not None  # the median is between the quartiles
        return split

    def _counted(self) -> Iterator[tuple[StepRecord, bool]]:
        for steps in self.steps:
            before = 0
            for step in steps:
                yield step, step.step >= WARM_UP and step.epoch == before
                before = step.epoch


def write_data(folder: Path, global_batch: int) -> Path:
    """Write the first images of MNIST, enough for steps of `global_batch` samples, and return the path."""
    mnist = load("mnist")
    count = min(len(mnist.train), max(SAMPLES, EPOCH_STEPS * global_batch))
    path = folder / f"digits-{count}.npz"
    if not path.exists():
        train, test = mnist.train, mnist.test
        x_test, y_test = test.images[:TEST_SAMPLES], test.labels[:TEST_SAMPLES]
        np.savez(path, x_train=train.images[:count], y_train=train.labels[:count], x_test=x_test, y_test=y_test)
    return path


def timed_run(job: Job, launch: Launch, folder: Path, say: Callable[[str], None]) -> tuple[RunResult, list[StepRecord]]:
    """Run the job once, and return its result and its steps. Its run folder is removed."""
    run_dir = folder / "run"
    try:
        # Without checkpoints, which would only be written at the end of these short epochs.
        launch = msgspec.structs.replace(launch, checkpoint_keep=0)
        destination = Destination(folder=run_dir, launch=launch)
        result = Cluster(job, destination, say=say, watch=lambda status: None, backend=LocalBackend(launch)).run()
        steps = read_metrics(run_dir).steps
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
    return result, steps


@dataclass
class DigestCheck:
    """Checks that the same job always gives the same weights."""

    known: dict[str, str] = field(default_factory=dict)

    def check(self, job: Job, result: RunResult) -> None:
        """Record the weights of a run. Raises RunError if the same job gave others before."""
        before = self.known.setdefault(job.digest(), result.weights_sha256)
        if before != result.weights_sha256:
            raise RunError(
                f"one job gave the weights {before[:12]}… and {result.weights_sha256[:12]}…, the latter with "
                f"{result.workers} workers over {result.transport}: expected the same bits; please report this"
            )
