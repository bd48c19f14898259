"""Times whole training steps in one process, alternating with the peer where there is one."""

import resource
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from common.autograd.graph import observe
from common.data.dataset import TrainTest
from common.job.job import Job
from common.runtime.clock import Clock
from lockstep.bench.baseline.baseline import Baseline, layouts_of
from lockstep.bench.baseline.stepper import Answer
from lockstep.bench.reports.step_result import BaselineFigures, StepFigures, median_ms
from lockstep.bench.step.flops import gemm_peak, step_flops
from lockstep.bench.step.profile import Profile
from lockstep.runs.single_process import SingleProcessTrainer
from ps.setup import AdmissionPolicy, open_run

#: Steps before anything is measured: buffers are made and caches filled.
WARM_UP = 10

#: Steps at the beginning of a turn that do not count: the caches are still the other's.
FIRST = 3

#: Turns in which ours and the peer alternate: what disturbs the machine for a while disturbs both.
ROUNDS = 6


@dataclass
class StepBench:
    """A job whose steps are made one after the other, on data that is loaded already."""

    job: Job
    data: TrainTest
    clock: Clock
    trainer: SingleProcessTrainer = field(init=False)
    #: The step that comes next.
    at: int = 0

    def __post_init__(self) -> None:
        self.trainer = SingleProcessTrainer(open_run("bench", self.job, self.data, AdmissionPolicy()), self.clock)

    def times(self, steps: int) -> list[float]:
        """Make `steps` steps; return the seconds that each took."""
        times = []
        for _ in range(steps):
            began = self.clock.now()
            self.trainer.step(self.at)
            times.append(self.clock.now() - began)
            self.at += 1
        return times

    def flops(self) -> int:
        """Return the operations of the matrix products of one step."""
        images = self.data.train.images[: self.job.global_batch]
        return step_flops(self.trainer.opening.model, self.trainer.compute.preparation.images(images))


def measure(bench: StepBench, steps: int, peer_python: Path | None) -> StepFigures:
    """Return the figures of at least `steps` steps, and of as many of the peer's, taken in turns with ours."""
    model, batch = bench.job.model_name(), bench.job.global_batch
    layouts = layouts_of(model) if peer_python else ()
    peers = [Baseline.start(peer_python, ["step", model, str(batch)], layout) for layout in layouts if peer_python]
    a_turn = FIRST + -(-steps // ROUNDS)
    try:
        bench.times(WARM_UP)
        for peer in peers:
            peer.steps(WARM_UP)
        ours: list[float] = []
        theirs: dict[str, list[Answer]] = {peer.layout: [] for peer in peers}
        for _ in range(ROUNDS):
            ours += bench.times(a_turn)[FIRST:]
            for peer in peers:
                theirs[peer.layout].append(peer.steps(a_turn))
    finally:
        for peer in peers:
            peer.close()
    peak = gemm_peak(bench.clock)
    ms = median_ms(ours)
    return StepFigures(
        model=model,
        batch=batch,
        micro_batches=bench.job.micro_batches,
        ms_per_step=ms,
        steps=len(ours),
        images_per_s=batch / ms * 1e3,
        peak_rss_mb=peak_rss_bytes() / 1e6,
        gemm_gflops_share=bench.flops() / peak / (ms / 1e3),
        gemm_peak_gflops=peak / 1e9,
        peer=faster_layout(theirs, ms) if peers else None,
    )


def faster_layout(theirs: dict[str, list[Answer]], our_ms: float) -> BaselineFigures:
    """Return the peer's figures in the layout in which it is faster, so that nobody can say that it was held badly."""
    medians = {
        layout: median_ms([second for answer in answers for second in answer.seconds[FIRST:]])
        for layout, answers in theirs.items()
    }
    layout = min(medians, key=lambda each: medians[each])
    last = theirs[layout][-1]
    return BaselineFigures(
        version=last.version,
        layout=layout,
        ms_per_step=medians[layout],
        peak_rss_mb=last.peak_rss_bytes / 1e6,
        ratio=medians[layout] / our_ms,
    )


def profile(bench: StepBench, steps: int) -> Table:
    """Return a table of where the time of a step goes.

    Steps that are observed and steps that are not take turns: what disturbs the machine for a while disturbs both.
    """
    bench.times(WARM_UP)
    observer, plain, a_turn = Profile(bench.clock), list[float](), -(-steps // ROUNDS)
    for _ in range(ROUNDS):
        plain += bench.times(a_turn)
        with observe(observer):
            bench.times(a_turn)
    return observer.table(len(plain), statistics.mean(plain))


def peak_rss_bytes() -> int:
    """Return the most memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
