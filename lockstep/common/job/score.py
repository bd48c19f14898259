"""The quality of a tally, in numbers that people know: accuracy or R² first, then the other metrics. Pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from lockstep.common.job.metrics import LossBasis, Metrics
from lockstep.common.job.tally import Tally


class Guess(NamedTuple):
    """The mean squared errors of always predicting the mean of a set's targets."""

    train: float
    test: float
    #: None without a validation set.
    validation: float | None = None


class Score(NamedTuple):
    """The figures of a tally, besides its loss; those that the job does not have are None."""

    #: The share of right answers.
    accuracy: float | None
    #: The coefficient of determination: the share of the targets' variance that is explained, at most 1.
    r2: float | None
    #: All other metrics of the job, by name.
    others: Mapping[str, float] = MappingProxyType({})

    def text(self) -> str:
        """Return the first number without its name, empty without a number."""
        if self.accuracy is not None:
            return f"{self.accuracy:.2%}"
        return "" if self.r2 is None else f"{self.r2:.4f}"

    @property
    def name(self) -> str:
        """The name of that number, empty without a number."""
        if self.accuracy is not None:
            return "accuracy"
        return "" if self.r2 is None else "R²"

    def named(self, prefix: str) -> dict[str, float]:
        """Return the other metrics, by their names after a prefix."""
        return {f"{prefix}{name}": value for name, value in self.others.items()}


def score_of(metrics: Metrics, tally: Tally, guess: float | None = None) -> Score:
    """Return the score of a tally by a job's metrics; R² is measured against `guess`."""
    found = metrics.figures(tally.metrics, LossBasis(tally.loss, guess))
    accuracy, r2 = found.pop("accuracy", None), found.pop("r2", None)
    return Score(accuracy, r2, found)
