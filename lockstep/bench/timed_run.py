"""Run a job on a cluster of processes, and read the times of its steady steps from the metrics of the run."""

import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lockstep.common.data.source import load
from lockstep.common.errors import RunError
from lockstep.common.job.job import Job
from lockstep.launch.chaos import Interference
from lockstep.launch.cluster import Cluster
from lockstep.launch.process_backend import LocalBackend
from lockstep.ps.records.metrics import StepRecord, read_metrics
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.run.timing import Split, StepTimeTotals
from lockstep.runs.launch_config import Launch
from lockstep.runs.session import Destination

#: Steps at the beginning of a run that do not count, while buffers are made and caches filled.
WARM_UP = 20

#: Test images: few, because evaluations are not measured.
TEST_SAMPLES = 64


@dataclass
class TimedRuns:
    """Runs of one job with one launch, and the steps of each."""

    results: list[RunResult] = field(default_factory=list)
    steps: list[list[StepRecord]] = field(default_factory=list)

    def add(self, result: RunResult, steps: list[StepRecord]) -> None:
        """Add a run."""
        self.results.append(result)
        self.steps.append(steps)

    def steady(self) -> list[float]:
        """Return the seconds of the steps that count, without the warm-up and the step after an evaluation."""
        return [second for turn in self.turns() for second in turn]

    def turns(self) -> list[list[float]]:
        """Return the seconds of the steps that count, a list for each run."""
        return [[step.round_s for step, counts in counted(steps) if counts] for steps in self.steps]

    def split(self) -> Split:
        """Return where the time went in the steps between the quartiles, so that disturbances are left out."""
        low, _, high = statistics.quantiles(self.steady(), n=4, method="inclusive")
        book = StepTimeTotals()
        for steps in self.steps:
            for step, counts in counted(steps):
                book.add(step.time(), step.update_s, is_counted=counts and low <= step.round_s <= high)
        split = book.split()
        assert split is not None  # the median is between the quartiles
        return split

    def middle_split(self) -> Split:
        """Return where the time of all steps of the middle turn went: its whole is the turn's mean step."""
        turns, book = self.turns(), StepTimeTotals()
        middle = [statistics.mean(turn) for turn in turns].index(mean_step_s(turns))
        for step, counts in counted(self.steps[middle]):
            book.add(step.time(), step.update_s, is_counted=counts)
        split = book.split()
        assert split is not None  # a run has at least one step that counts
        return split


def counted(steps: Sequence[StepRecord]) -> Iterator[tuple[StepRecord, bool]]:
    """Yield the steps of a run, and whether each counts."""
    before = 0
    for step in steps:
        yield step, step.step >= WARM_UP and step.epoch == before
        before = step.epoch


def mean_step_s(turns: Sequence[Sequence[float]]) -> float:
    """Return the seconds of a mean step in the middle turn, or in the slower one of two in the middle.

    The mean, because the images/s of a run are those of all its steps, of slow ones too: in 36 runs of 400 steps on a
    busy machine the median step was 6 % faster. The middle turn, so that one disturbed turn in three does not count.
    """
    return statistics.median_high(statistics.mean(turn) for turn in turns)


def write_data(folder: Path, name: str = "mnist") -> Path:
    """Write MNIST, or other data, with fewer test samples, and return the path."""
    path = folder / "digits.npz"
    if not path.exists():
        data = load(name)
        train, test = data.train, data.test
        x_test, y_test = test.images[:TEST_SAMPLES], test.labels[:TEST_SAMPLES]
        np.savez(path, x_train=train.images[:], y_train=train.labels, x_test=x_test, y_test=y_test)
    return path


def timed_run(job: Job, launch: Launch, folder: Path, say: Callable[[str], None]) -> tuple[RunResult, list[StepRecord]]:
    """Run the job once, and return its result and its steps."""
    with finished_run(job, launch, folder, say) as (result, run_dir):
        return result, read_metrics(run_dir).steps


@contextmanager
def finished_run(
    job: Job, launch: Launch, folder: Path, say: Callable[[str], None], interference: Interference | None = None
) -> Iterator[tuple[RunResult, Path]]:
    """Run the job once, and yield its result and its run folder, which is removed afterwards."""
    run_dir = folder / "run"
    destination, backend = Destination(folder=run_dir, launch=launch), LocalBackend(launch)
    try:
        cluster = Cluster(job, destination, say=say, watch=lambda _: None, backend=backend, chaos=interference)
        yield cluster.run(), run_dir
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


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
