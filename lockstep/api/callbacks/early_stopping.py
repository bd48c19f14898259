"""Stops a run that gets no better: a value of the job, which the server decides by."""

from dataclasses import dataclass
from typing import Any

from common.job.job import Monitor
from lockstep.api.callbacks.callback import Callback


@dataclass(frozen=True)
class EarlyStopping(Callback):
    """Stop after `patience` epochs in a row that were not better than the best one by more than `min_delta`.

    `monitor` is a figure of an epoch; by default "val_loss" in a run with `validation_split`, and "test_loss" in
    others. With `restore_best` the run's result is the weights of the best epoch, instead of those of the last one.
    """

    monitor: Monitor | None = None
    patience: int = 3
    min_delta: float = 0.0
    restore_best: bool = False

    def values(self) -> dict[str, Any]:
        """Return the values of a job that say the same."""
        values = {"patience": self.patience, "min_delta": self.min_delta, "keep_best": self.restore_best}
        return values if self.monitor is None else {**values, "monitor": self.monitor}
