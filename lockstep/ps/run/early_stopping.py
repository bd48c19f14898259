"""Which epoch was the best so far, and whether the run has waited long enough for a better one. Pure.

This follows from the job and the history alone: every process that has these decides the same, whoever computed the
epochs, and whether or not the run was resumed from a checkpoint. Prechelt ("Early stopping, but when?", 1998) calls
this the third class of criteria: stop after so many strips without a better figure.
"""

from collections.abc import Sequence
from typing import TypeVar

from lockstep.common.job.job import Job, is_higher_better
from lockstep.common.protocol.messages import EpochRecord

Epoch = TypeVar("Epoch", bound=EpochRecord)


def best_epoch(job: Job, history: Sequence[Epoch]) -> Epoch | None:
    """Return the best epoch by a job's `monitor` and `min_delta`, of equals the first; None if there is none yet."""
    if not history:
        return None
    best = history[0]
    for epoch in history[1:]:
        figures = (figure_of(each, job.monitored()) for each in (epoch, best))
        if is_better(*figures, is_higher=is_higher_better(job, job.monitored()), min_delta=job.min_delta):
            best = epoch
    return best


def is_stopped(job: Job, history: Sequence[EpochRecord]) -> bool:
    """Tell whether a run is to end although epochs are left: its `patience` is used up."""
    if job.patience is None:
        return False  # without a look at an ever longer history
    best = best_epoch(job, history)
    return best is not None and history[-1].epoch - best.epoch >= job.patience


def is_better(figure: float, than: float, *, is_higher: bool, min_delta: float = 0.0) -> bool:
    """Tell whether a figure is better than another by more than `min_delta`: a loss by less, an accuracy by more."""
    return (figure - than if is_higher else than - figure) > min_delta


def figure_of(epoch: EpochRecord, monitor: str) -> float:
    """Return one figure of an epoch; ValueError if the run does not have it."""
    figure = epoch.metrics[monitor] if monitor in epoch.metrics else getattr(epoch, monitor, None)
    if not isinstance(figure, float):
        raise ValueError(f"{monitor} is {figure!r}: expected a run with validation_split above 0")
    return figure
