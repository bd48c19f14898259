"""Which epoch is the best, and when a run has waited long enough."""

from typing import Any

import msgspec
import pytest

from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.run.plan import best_epoch, figure_of, is_stopped


def history_of(*figures: float, name: str = "val_loss") -> list[EpochRecord]:
    """Return epochs with those figures, and others that would say the opposite."""
    fixed: dict[str, Any] = {
        "loss": 1.0,
        "accuracy": 0.5,
        "test_loss": 1.0,
        "test_accuracy": 0.5,
        "val_loss": 1.0,
        "val_accuracy": 0.5,
    }
    return [
        EpochRecord(epoch=number, wall_s=0.0, **{**fixed, name: figure}) for number, figure in enumerate(figures, 1)
    ]


def job_of(**values: Any) -> Job:
    return Job(validation_split=0.1, **values)


@pytest.mark.parametrize(
    ("monitor", "figures", "best"),
    [
        ("val_loss", (3.0, 2.0, 1.0), 3),
        ("val_loss", (1.0, 2.0, 3.0), 1),
        ("val_loss", (2.0, 1.0, 1.0), 2),
        ("val_accuracy", (0.1, 0.9, 0.5), 2),
        ("test_loss", (2.0, 1.0, 3.0), 2),
        ("accuracy", (0.9, 0.9, 0.91), 3),
    ],
)
def test_the_best_is_the_first_that_none_is_better_than(monitor: str, figures: tuple[float, ...], best: int) -> None:
    history = history_of(*figures, name=monitor)
    assert best_epoch(job_of(monitor=monitor), history) is history[best - 1]


@pytest.mark.parametrize(
    ("values", "figures", "best"),
    [
        ({"metrics": ("f1",), "monitor": "test_f1"}, (0.1, 0.9, 0.5), 2),
        ({"metrics": ("perplexity",), "monitor": "test_perplexity"}, (3.0, 5.0, 2.0), 3),
        ({"metrics": ("own.py:cost",), "monitor": "test_cost", "monitor_mode": "min"}, (3.0, 5.0, 2.0), 3),
        ({"metrics": ("own.py:gain",), "monitor": "test_gain", "monitor_mode": "max"}, (3.0, 5.0, 2.0), 2),
    ],
)
def test_metrics_of_a_job_are_watched_in_their_direction(
    values: dict[str, Any], figures: tuple[float, ...], best: int
) -> None:
    epochs = history_of(*(0.0 for _ in figures))
    history = [
        msgspec.structs.replace(epoch, metrics={values["monitor"]: figure})
        for epoch, figure in zip(epochs, figures, strict=True)
    ]
    assert best_epoch(job_of(**values), history) is history[best - 1]


def test_before_the_first_epoch_nothing_is_judged() -> None:
    assert best_epoch(job_of(), []) is None
    assert not is_stopped(job_of(patience=1), [])


def test_small_gains_do_not_count_and_do_not_add_up_unseen() -> None:
    job, slow = job_of(min_delta=0.5), history_of(2.0, 1.75, 1.5, 1.25)
    assert best_epoch(job, slow[:3]) is slow[0]
    # Together they do: it is the best one that each is compared with.
    assert best_epoch(job, slow) is slow[3]


@pytest.mark.parametrize(
    ("patience", "figures", "stopped"),
    [
        (None, (1.0, 2.0, 3.0, 4.0), [False] * 4),
        (1, (1.0, 2.0), [False, True]),
        (2, (1.0, 2.0, 3.0), [False, False, True]),
        (2, (3.0, 4.0, 2.0, 5.0, 6.0), [False, False, False, False, True]),
        (2, (1.0, 1.0, 1.0), [False, False, True]),
    ],
)
def test_a_run_stops_when_its_patience_is_used_up(
    patience: int | None, figures: tuple[float, ...], stopped: list[bool]
) -> None:
    history = history_of(*figures)
    found = [is_stopped(job_of(patience=patience), history[:number]) for number in range(1, len(history) + 1)]
    assert found == stopped


def test_without_a_validation_set_the_test_loss_is_watched() -> None:
    history = history_of(2.0, 1.0, name="test_loss")
    assert best_epoch(Job(), history) is history[1]


def test_a_figure_that_there_is_not() -> None:
    epoch = EpochRecord(epoch=1, loss=1.0, test_loss=1.0, wall_s=0.0)
    with pytest.raises(ValueError, match="val_loss is None: expected a run with validation_split"):
        figure_of(epoch, "val_loss")
