"""Functions of the user's own that a job names, next to its model: what each is for. Runs nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from lockstep.common.job.job import Job, names_code
from lockstep.common.job.metrics import OwnMetric, metric_name
from lockstep.common.job.objective import OwnLoss
from lockstep.common.optim.rules import Rule

#: The values of a job that may name a function.
NAMING = ("loss", "optimizer", "schedule", "transform")

#: How the value is called of one of the metrics, which are several: before the name of its function.
OF_METRIC = "metrics."


def functions_of(job: Job) -> Mapping[str, str]:
    """Return the functions that a job names, `FILE.py:FUNCTION`, by the value that names each."""
    named = {value: name for value in NAMING if names_code(name := getattr(job, value))}
    return named | {f"{OF_METRIC}{metric_name(name)}": name for name in job.metrics or () if names_code(name)}


def needs_code(job: Job) -> bool:
    """Tell whether updates call a function of the user."""
    return names_code(job.optimizer) or names_code(job.schedule)


class OwnCode(msgspec.Struct, frozen=True):
    """The functions, as they are called; None where the job names none."""

    loss: OwnLoss | None = None
    #: Returns an update rule: its class, or a function.
    optimizer: Callable[[], Rule] | None = None
    #: Returns a changed training sample, given that and a generator, or that, its target and a generator.
    transform: Callable[..., Any] | None = None
    #: Returns the factor of the learning rate, given the step and the number of steps.
    schedule: Callable[[int, int], Any] | None = None
    #: By their names.
    metrics: Mapping[str, OwnMetric] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "OwnCode":
        """Return functions by the values that name them, as `functions_of` does."""
        metrics = {value.removeprefix(OF_METRIC): made for value, made in found.items() if value.startswith(OF_METRIC)}
        return cls(**{value: made for value, made in found.items() if value in NAMING}, metrics=metrics)


#: Of a job that names none.
NO_CODE = OwnCode()
