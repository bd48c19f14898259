"""Whether so many workers pay: by the job's pieces, the cores, and what a step costs against an exchange."""

from common.aggregation.layout import layout_of
from lockstep.doctor.checks.first_steps import SAMPLES, FirstSteps
from lockstep.doctor.finding import Finding
from lockstep.doctor.target import ExaminationTarget

#: What an exchange takes at least, and for each float32 that comes and goes, on one machine over shared memory:
#: 0.18 ms with 7,850 parameters and 29 ms with 25 million, by two workers.
LATENCY_S, PER_VALUE_S = 0.18e-3, 0.6e-9


def check_workers(patient: ExaminationTarget, steps: FirstSteps, cores: int) -> list[Finding]:
    """Return whether the workers that were asked for are too many for the job, the machine, or the model."""
    workers, job = patient.workers, patient.job
    if workers is None or workers < 2:
        return []
    if workers > job.micro_batches:
        return [_idle(workers, job.micro_batches)]
    if workers > cores:
        return [_crowded(workers, cores)]
    return _too_small(patient, workers, steps)


def _too_small(patient: ExaminationTarget, workers: int, steps: FirstSteps) -> list[Finding]:
    size = layout_of(patient.model).size
    # What was timed is a part of the batch where that is large.
    alone_s = steps.step_s * max(1.0, patient.job.global_batch / SAMPLES)
    together_s = alone_s / workers + LATENCY_S + PER_VALUE_S * size * workers
    if together_s < alone_s:
        return []
    return [
        Finding(
            kind="workers",
            what=f"the model is too small for {workers} workers",
            evidence=f"one process makes a step in {1e3 * alone_s:.2g} ms; with {workers} workers it takes about "
            f"{1e3 * together_s:.2g} ms",
            cause=f"sending {size:,} gradients and weights takes longer than computing them",
            change="train with workers = 0, which gives the same bits, or with a larger global_batch, which does not",
        )
    ]


def _idle(workers: int, pieces: int) -> Finding:
    return Finding(
        kind="workers",
        what=f"{workers} workers are more than {pieces} micro-batches keep busy",
        evidence=f"a step has {pieces} pieces, and a piece is computed by one worker",
        cause=f"{workers - pieces} of them would stand by all the time",
        change=f"ask for at most {pieces} workers, or raise micro_batches, which gives other bits",
    )


def _crowded(workers: int, cores: int) -> Finding:
    return Finding(
        kind="workers",
        what=f"{workers} workers share {cores} core{'s' if cores > 1 else ''}",
        evidence=f"this process may use {cores}",
        cause="a worker computes with one core: more of them only take turns, and every step waits for the slowest",
        change=f"ask for {cores} workers, or start the others on other machines",
    )
