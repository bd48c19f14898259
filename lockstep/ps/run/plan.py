"""The plan of a run: its rounds in order, and whether it stops early. Pure.

Early stopping follows from the job and the history alone: every process that has these decides the same, whichever
worker computed the epochs, and whether or not the run was resumed from a checkpoint. Prechelt ("Early stopping, but
when?", 1998) calls this the third class of criteria: stop after so many strips without a better figure."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from lockstep.common.aggregation.tree import Node
from lockstep.common.data.sampler import evaluation_chunks
from lockstep.common.job.job import Job, is_higher_better
from lockstep.common.protocol.messages import EpochRecord, Work

Epoch = TypeVar("Epoch", bound=EpochRecord)


def best_epoch(job: Job, history: Sequence[Epoch]) -> Epoch | None:
    """Return the best epoch by a job's `monitor` and `min_delta`, of equals the first; None before the first."""
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


#: The names of evaluations on the screen.
EVALUATIONS: dict[Work, str] = {"validate": "validation", "evaluate": "evaluation"}


class Round(msgspec.Struct, frozen=True):
    """Work that is done once all its micro-batches are: a training step, or an evaluation after `step` steps."""

    work: Work
    step: int
    micro_batches: int

    def named(self, nodes: Sequence[Node]) -> str:
        """Return how some of its micro-batches are named in messages to people."""
        named = ", ".join(map(str, nodes))
        if self.work in EVALUATIONS:
            return f"{EVALUATIONS[self.work]} chunks {named} after step {self.step}"
        return f"micro-batches {named} of step {self.step}"


class Plan(msgspec.Struct, frozen=True):
    """The rounds of a job, in order."""

    total_steps: int
    steps_per_epoch: int
    micro_batches: int
    evaluation_chunks: int
    #: 0 without a validation set.
    validation_chunks: int = 0

    def first(self) -> Round:
        return Round("train", 0, self.micro_batches)

    def after(self, done: Round) -> Round | None:
        """Return the round that follows, None after the last."""
        step = done.step + 1 if done.work == "train" else done.step
        if done.work == "train" and self.closes_epoch(done.step) and self.validation_chunks:
            return Round("validate", step, self.validation_chunks)
        if done.work == "validate" or (done.work == "train" and self.closes_epoch(done.step)):
            # The test set comes last: with it the epoch's figures are complete.
            return Round("evaluate", step, self.evaluation_chunks)
        return Round("train", step, self.micro_batches) if step < self.total_steps else None

    def at(self, steps: int, *, is_evaluated: bool) -> Round | None:
        """Return the round that follows `steps` training steps, None at the end of the run.

        `is_evaluated` tells whether the evaluations that may follow the last of them are done.
        """
        if not steps:
            return self.first()
        following = self.after(Round("train", steps - 1, self.micro_batches))
        while is_evaluated and following is not None and following.work != "train":
            following = self.after(following)
        return following

    def closes_epoch(self, step: int) -> bool:
        """Tell whether an epoch ends with that step: the last one may end early."""
        return (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.total_steps

    def epoch_of(self, step: int) -> int:
        """Return the epoch of a step, from 1."""
        return min(step, self.total_steps - 1) // self.steps_per_epoch + 1

    def samples(self, training_samples: int, global_batch: int) -> int:
        """Return the number of samples that all steps use: each epoch's last batch may be short."""
        epochs, steps = divmod(self.total_steps, self.steps_per_epoch)
        return epochs * training_samples + min(steps * global_batch, training_samples)

    @property
    def epochs(self) -> int:
        """Number of epochs, the last one perhaps cut short."""
        return self.epoch_of(self.total_steps - 1)


def next_round(job: Job, plan: Plan, done: Round, history: Sequence[EpochRecord]) -> Round | None:
    """Return the round after one that is done, None if the run is over: after its last step, or early."""
    if done.work == "evaluate" and is_stopped(job, history):
        return None
    return plan.after(done)


def plan_of(job: Job, training_samples: int, test_samples: int, validation_samples: int = 0) -> Plan:
    """Return the plan of a job on datasets of these sizes; the training set is what the validation set leaves."""
    return Plan(
        total_steps=job.total_steps(training_samples),
        steps_per_epoch=-(-training_samples // job.global_batch),
        micro_batches=job.micro_batches,
        evaluation_chunks=evaluation_chunks(test_samples),
        validation_chunks=evaluation_chunks(validation_samples) if validation_samples else 0,
    )
