"""Writes the weights after epochs into files that `lockstep`, PyTorch and everybody with safetensors can read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import msgspec

from common.errors import JobError, RunError
from common.files.safetensors import write
from common.job.job import Monitor
from common.protocol.messages import EpochStatus
from lockstep.api.callbacks.callback import Callback
from lockstep.api.callbacks.training import Training
from ps.run.early_stopping import figure_of, is_better


@dataclass
class ModelCheckpoint(Callback):
    """Write the weights to `path` after each epoch, or with `save_best_only` after each that is the best so far.

    `path` may hold figures of the epoch, as "weights-{epoch:02d}-{val_loss:.3f}.safetensors"; where it holds none, the
    file is replaced. `monitor` is as in `EarlyStopping`. To go on with a run, its own checkpoints serve: these files
    hold weights alone.
    """

    path: str | Path
    monitor: Monitor | None = None
    save_best_only: bool = False
    #: The best figure so far.
    best: float | None = field(default=None, init=False)

    def on_train_begin(self, training: Training) -> None:
        self.best = None
        monitor = self.monitor or training.job.monitored()
        if monitor not in get_args(Monitor):
            raise JobError(f"monitor = {monitor!r}: expected one of {', '.join(get_args(Monitor))}")
        if monitor.startswith("val_") and not training.job.validation_split:
            raise JobError(f"monitor = {monitor!r} without a validation set: expected validation_split above 0")

    def on_epoch_end(self, training: Training, epoch: EpochStatus) -> None:
        monitor = self.monitor or training.job.monitored()
        figure = figure_of(epoch, monitor)
        is_best = self.best is None or is_better(monitor, figure, self.best)
        if is_best:
            self.best = figure
        if is_best or not self.save_best_only:
            path = self._path(epoch)
            arrays = training.state_dict()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, arrays, {"epoch": str(epoch.epoch), monitor: repr(figure)})
            except OSError as error:
                told = error.strerror or str(error)
                raise RunError(f"ModelCheckpoint cannot write {str(path)!r}: {told}: expected a file's path") from error

    def _path(self, epoch: EpochStatus) -> Path:
        figures = {name: value for name, value in msgspec.to_builtins(epoch).items() if value is not None}
        try:
            return Path(str(self.path).format(**figures))
        except (KeyError, IndexError, ValueError) as error:
            raise JobError(
                f"path = {str(self.path)!r} cannot be filled in: {error}: expected names of {', '.join(figures)}, as "
                "in 'weights-{epoch:02d}.safetensors'"
            ) from error
