"""Check that the workers pay, given the micro-batches, the cores, and the costs of a step and an exchange."""

from lockstep.checking.checkup.checks.first_steps import SAMPLES, FirstSteps
from lockstep.checking.checkup.finding import Finding
from lockstep.checking.checkup.target import ExaminationTarget
from lockstep.common.aggregation.layout import layout_of

#: Seconds that an exchange takes at least, and per float32 sent and received, on one machine over shared memory:
#: two workers take 0.18 ms with 7,850 parameters and 29 ms with 25 million.
LATENCY_S, PER_VALUE_S = 0.18e-3, 0.6e-9


def check_workers(target: ExaminationTarget, steps: FirstSteps, cores: int) -> list[Finding]:
    """Return whether the requested workers are too many for the job, the machine or the model."""
    workers, job = target.workers, target.job
    if workers is None or workers < 2:
        return []
    if workers > job.micro_batches:
        return [_idle(workers, job.micro_batches)]
    if workers > cores:
        return [_too_few_cores(workers, cores)]
    return _too_small(target, workers, steps)


def _too_small(target: ExaminationTarget, workers: int, steps: FirstSteps) -> list[Finding]:
    size = layout_of(target.model).size
    # Of a large batch, only a part was timed.
    single_s = steps.step_s * max(1.0, target.job.global_batch / SAMPLES)
    parallel_s = single_s / workers + LATENCY_S + PER_VALUE_S * size * workers
    if parallel_s < single_s:
        return []
    return [
        Finding(
            kind="workers",
            what=f"the model is too small for {workers} workers",
            evidence=f"one process makes a step in {1e3 * single_s:.2g} ms; with {workers} workers it takes about "
            f"{1e3 * parallel_s:.2g} ms",
            cause=f"sending {size:,} gradients and weights takes longer than computing them",
            change="train with workers = 0, which gives the same bits, or with a larger global_batch, which does not",
        )
    ]


def _idle(workers: int, micro_batches: int) -> Finding:
    return Finding(
        kind="workers",
        what=f"{workers} workers are more than {micro_batches} micro-batches keep busy",
        evidence=f"a step has {micro_batches} micro-batches, each of which is computed by one worker",
        cause=f"{workers - micro_batches} of them would be idle all the time",
        change=f"use at most {micro_batches} workers, or raise micro_batches, which changes the bits",
    )


def _too_few_cores(workers: int, cores: int) -> Finding:
    return Finding(
        kind="workers",
        what=f"{workers} workers share {cores} core{'s' if cores > 1 else ''}",
        evidence=f"this process may use {cores}",
        cause="a worker uses one core; more of them only take turns, and every step waits for the slowest",
        change=f"use {cores} workers, or start the others on other machines",
    )
