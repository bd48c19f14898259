"""How good a tally is, as the number that people know: accuracy for classes, R² for real targets. Pure."""

from typing import NamedTuple

from lockstep.common.job.tally import Tally


class Guess(NamedTuple):
    """The mean squared error of always predicting the targets' mean, over the training set and the test set."""

    train: float
    test: float


class Score(NamedTuple):
    """One of the two; the other is None."""

    #: The share of right answers.
    accuracy: float | None
    #: The coefficient of determination: the share of the targets' variance that is explained, at most 1.
    r2: float | None

    def text(self) -> str:
        """Return the number without its name."""
        return f"{self.accuracy:.2%}" if self.accuracy is not None else f"{self.r2 or 0.0:.4f}"

    @property
    def name(self) -> str:
        return "accuracy" if self.accuracy is not None else "R²"


def score_of(tally: Tally, guess: float | None) -> Score:
    """Return the score of a tally, measured against `guess` if its targets are real numbers."""
    if guess is None:
        return Score(tally.accuracy, None)
    # Where all targets are equal there is nothing to explain.
    return Score(None, 1.0 - tally.loss / guess if guess else 0.0)
