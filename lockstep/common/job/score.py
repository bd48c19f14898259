"""How good a tally is, as the number that people know: accuracy for classes, R² for mean squared errors. Pure."""

from typing import NamedTuple

from lockstep.common.job.tally import Tally


class Guess(NamedTuple):
    """The mean squared error of always predicting the targets' mean, over the training set and the test set."""

    train: float
    test: float


class Score(NamedTuple):
    """One of the two, the other is None; or neither, of losses that no such number belongs to."""

    #: The share of right answers.
    accuracy: float | None
    #: The coefficient of determination: the share of the targets' variance that is explained, at most 1.
    r2: float | None

    def text(self) -> str:
        """Return the number without its name, empty if there is none."""
        if self.accuracy is not None:
            return f"{self.accuracy:.2%}"
        return "" if self.r2 is None else f"{self.r2:.4f}"

    @property
    def name(self) -> str:
        """What the number is called, empty if there is none."""
        if self.accuracy is not None:
            return "accuracy"
        return "" if self.r2 is None else "R²"


def score_of(tally: Tally, guess: float | None, *, has_accuracy: bool = True) -> Score:
    """Return the score of a tally, measured against `guess` if its loss is the mean squared error."""
    if guess is None:
        return Score(tally.accuracy if has_accuracy else None, None)
    # Where all targets are equal there is nothing to explain.
    return Score(None, 1.0 - tally.loss / guess if guess else 0.0)
