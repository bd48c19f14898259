"""The values of a job in groups, as the help, the reference and the page show them, and which of them are unusual."""

from pathlib import Path
from typing import Any

import msgspec

from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import LOCAL, hyperparameters
from lockstep.common.protocol.run_options import RunOptions, kept
from lockstep.runs.job_file import SHIPPED, resolve

#: When checkpoints are written, and how many are kept.
CHECKPOINT_FIELDS = ("checkpoint_keep", "checkpoint_every_steps", "checkpoint_every_seconds")

#: The groups in their order; the help has values in no group before them, the page after them.
GROUPS: dict[str, tuple[str, ...]] = {
    "Model and data": (
        *("model", "data", "initial", "initial_partial", "normalize", "max_shift", "transform", "seed", "numerics"),
    ),
    "Length and micro-batches": ("epochs", "steps", "global_batch", "micro_batches"),
    "Fewer bytes": ("wire", "wire_weights"),
    "Optimizer": (
        *("optimizer", "lr", *hyperparameters()),
        *("no_decay", "lr_factors", "clip_norm", "clip_value", "ema_decay"),
    ),
    "Loss and metrics": ("loss", "class_weights", "ignore_index", "label_smoothing", "metrics"),
    "Learning rate schedule": (*("schedule", "warmup_steps", "decay_every", "decay_factor", "decay_power", "min_lr"),),
    "Local steps": ("local_steps", *(f"local_{name}" for name in LOCAL)),
    "Early stopping and the best epoch": (
        "validation_split",
        "monitor",
        "monitor_mode",
        "patience",
        "min_delta",
        "keep_best",
    ),
    "Processes": ("workers", "min_workers", "servers", "transport", "max_restarts", "audit", "audit_ends", "ship_data"),
    "Standbys": ("standby", "takeover_seconds"),
    "Checkpoints": CHECKPOINT_FIELDS,
}

#: Values that follow from the machine: none of them is unusual.
OF_THE_MACHINE = ("workers", "min_workers")


class ShownValue(msgspec.Struct, frozen=True, kw_only=True):
    """A value of a job as a person sees it."""

    name: str
    value: Any
    #: What a job of this model has if nobody says anything.
    usual: Any
    is_unusual: bool


class ShownGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Values that belong together."""

    group: str
    values: list[ShownValue]


def shown_values(job: Job, options: RunOptions) -> list[ShownGroup]:
    """Return the values of a job and the options of its run in their groups."""
    usual_job, usual_options = resolve({}, {"model": job.model} if job.model in SHIPPED else {})
    values = msgspec.to_builtins(job) | kept(options)
    usual = msgspec.to_builtins(usual_job) | kept(usual_options)
    grouped = {name for names in GROUPS.values() for name in names}
    left = tuple(name for name in values if name not in grouped)
    return [
        ShownGroup(group=group, values=[_shown(name, values[name], usual[name]) for name in names])
        for group, names in ((GROUPS | {"Others": left}) if left else GROUPS).items()
    ]


def named(value: Any) -> Any:
    """Return the name of a file or a folder that is given by its whole path, and any other value as it is.

    Whoever wrote `data = "homes.csv"` reads it so; what we put somewhere, as the arrays of `fit` and packed tables, has
    a path that nobody wrote. The job has all of it.
    """
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _shown(name: str, value: Any, usual: Any) -> ShownValue:
    is_unusual = value != usual and name not in OF_THE_MACHINE
    return ShownValue(name=name, value=named(value), usual=usual, is_unusual=is_unusual)
