import pytest

from lockstep.common.job.metrics import Metrics
from lockstep.common.job.score import Score, score_of
from lockstep.common.job.tally import Tally


@pytest.mark.parametrize(
    ("tally", "guess", "score", "told"),
    [
        (Tally(2.0, 4, metrics=(3, 4)), None, Score(0.75, None), "accuracy 75.00%"),
        (Tally(2.0, 4), 2.0, Score(None, 0.75), "R² 0.7500"),
        (Tally(20.0, 4), 2.0, Score(None, -1.5), "R² -1.5000"),
        (Tally(20.0, 4), 0.0, Score(None, 0.0), "R² 0.0000"),
    ],
)
def test_classes_have_accuracy_and_numbers_r2(tally: Tally, guess: float | None, score: Score, told: str) -> None:
    found = score_of(Metrics.of("cross-entropy" if guess is None else "mse", ()), tally, guess)
    assert (found.accuracy, found.r2, dict(found.others)) == (score.accuracy, score.r2, {})
    assert f"{found.name} {found.text()}" == told


def test_without_accuracy_and_r2_there_is_no_first_number() -> None:
    score = Score(None, None, {"f1": 0.5})
    assert (score.name, score.text()) == ("", "")
    assert score.named("test_") == {"test_f1": 0.5}
