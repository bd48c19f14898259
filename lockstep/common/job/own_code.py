"""The user's own functions that a job names next to its model, and the one that transforms training samples.

A transformation draws by sample and epoch (rule R2). So a transformed sample does not depend on the process, or on
other draws, and differs in each epoch.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.errors import ModelError
from lockstep.common.job.job import Job, names_code
from lockstep.common.job.metrics import OwnMetric, metric_name
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.rules import Rule

#: A loss of the user: outputs and targets in, the sum of the losses and its divisor out.
OwnLoss = Callable[[Any, Any], tuple[Any, Any]]

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


#: Samples, and what goes with them.
Rows = NDArray[Any]


@dataclass
class Transform:
    """Calls the function for each sample."""

    #: Of a sample and a generator, or of a sample, its target and a generator.
    function: Callable[..., Any]
    #: Its name in the job.
    name: str
    seed: int
    has_targets: bool = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.has_targets = len(inspect.signature(self.function).parameters) == 3
        except (TypeError, ValueError):  # a function in C shows nothing
            self.has_targets = False

    def apply(self, samples: Rows, labels: Rows, indices: NDArray[np.int64], epoch: int) -> tuple[Rows, Rows]:
        """Return samples of these places in the training set as they are in an epoch, and their labels; both are new.

        `ModelError` if the function raises, or returns something of another shape or type.
        """
        samples, labels = samples.copy(), labels.copy()
        for row, place in enumerate(indices.tolist()):
            made = self._made(samples[row], labels[row], place, epoch)
            if self.has_targets:
                labels[row] = self._fitting(made[1], labels[row], "target")
                made = made[0]
            samples[row] = self._fitting(made, samples[row], "sample")
        return samples, labels

    def check(self, samples: Rows, labels: Rows) -> None:
        """Raise `ModelError` if the first sample becomes another one when it is transformed again."""
        first = np.zeros(1, np.int64)
        once, again = (self.apply(samples[:1], labels[:1], first, 0) for _ in range(2))
        if any(one.tobytes() != other.tobytes() for one, other in zip(once, again, strict=True)):
            raise ModelError(
                f"transform = {self.name!r} makes something else of a sample the second time: expected the same: draw "
                "from the generator that it is given, or from PyTorch's, and keep no state"
            )

    def _made(self, sample: Any, label: Any, place: int, epoch: int) -> Any:
        rng = generator(self.seed, Purpose.TRANSFORM, at=epoch, micro_batch=place)
        if "torch" in sys.modules:
            # Transformations of torchvision draw from there. By another generator, since PyTorch may be loaded in one
            # process and not in another.
            seeds = generator(self.seed, Purpose.TRANSFORM, at=epoch, micro_batch=place, layer=1)
            sys.modules["torch"].default_generator.manual_seed(int(seeds.integers(2**63)))
        given = (_named(sample), _named(label), rng) if self.has_targets else (_named(sample), rng)
        try:
            return self.function(*given)
        except Exception as error:
            raised = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelError(
                f"transform = {self.name!r} raised {raised}: expected a function of a sample and a generator, or of a "
                "sample, its target and a generator"
            ) from error

    def _fitting(self, made: Any, before: Any, what: str) -> Any:
        """Return what takes the place of a sample, or of a part of one."""
        if before.dtype.names:
            return tuple(self._fitting(made[name], before[name], what) for name in before.dtype.names)
        array = np.asarray(made)
        if array.shape != before.shape or not np.can_cast(array.dtype, before.dtype, "same_kind"):
            raise ModelError(
                f"transform = {self.name!r} makes a {what} of shape {array.shape} and dtype {str(array.dtype)!r}: "
                f"expected {before.shape} and {str(before.dtype)!r}, as it is stored, since the test set is not "
                "transformed"
            )
        return array


def transform_of(job: Job, own: OwnCode) -> Transform | None:
    """Return how a job transforms training samples, None if it does not."""
    return None if own.transform is None else Transform(own.transform, job.transform or "", job.seed)


def _named(value: Any) -> Any:
    """Return a record as a dictionary of its arrays; other values as they are."""
    return {name: value[name] for name in value.dtype.names} if value.dtype.names else value
