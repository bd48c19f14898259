"""Callbacks of `fit`: the base class, those of the library, the run that they see, and the thread that calls them.

    >>> from lockstep import EarlyStopping, LambdaCallback, fit, nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    >>> losses = []
    >>> run = fit(
    ...     model, "digits.npz", epochs=20, workers=0, global_batch=32, verbose=False, validation_split=0.25,
    ...     callbacks=[
    ...         EarlyStopping(monitor="val_loss", patience=2, restore_best_weights=True),
    ...         LambdaCallback(on_epoch_end=lambda training, epoch: losses.append(epoch.val_loss)),
    ...     ],
    ... )
    >>> len(losses) == len(run.history) <= 20
    True
    >>> run.history[run.result.weights_epoch - 1].val_loss == min(losses)
    True

There are two kinds, and both keep the promise: the same job, with the same callbacks, gives the same bits on any number
of workers.

*Values of the job.* `EarlyStopping` becomes `patience`, `monitor`, `min_delta` and `keep_best` of the job. The server
decides by them at the end of each epoch, from the history alone; so they are in `job.toml`, they are flags of
`lockstep train`, and a run that is resumed, or verified, ends at the same epoch without any Python of yours.

*Code.* Every other callback runs in the process that called `fit`, between two epochs, and the run waits for it: the
next epoch begins when `on_epoch_end` of all callbacks has returned, and not at all if one called `training.stop()`.
No step is made meanwhile, so that where the run ends does not depend on how long a callback took. Server and workers
keep answering; each epoch costs a tenth of a second of waiting. The alternative, a message that reaches the server at
some later step, would end the run at a step that differs from machine to machine.

Schedules count to the end of all epochs of the job, whether the run gets there or not.

There is nothing to be called after each step: steps are made by other processes, faster than this one could follow;
`metrics.jsonl` in the run's folder has a line for each.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
from numpy.typing import NDArray

from lockstep.common.errors import CallbackError, JobError, LockstepError, RunError
from lockstep.common.files.safetensors import read, write
from lockstep.common.job.job import Job, check_monitor, is_higher_better
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.records.run_folder import EPOCH_WEIGHTS
from lockstep.ps.run.plan import figure_of, is_better
from lockstep.runs.trained_model import model_with


@dataclass
class Training:
    """The arguments of a callback: the run's `folder`, its `job`, its `history` so far, and `stop`."""

    #: The run's folder.
    folder: Path
    job: Job
    #: One record per epoch so far: loss, accuracy, test_loss, test_accuracy, and with a validation set val_loss and
    #: val_accuracy.
    history: list[EpochRecord] = field(default_factory=list)
    is_stopped: bool = False

    def stop(self) -> None:
        """End the run after the epoch that has just ended, instead of beginning another one."""
        self.is_stopped = True

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the weights after the last epoch, by name and in their shapes.

        Raises `RunError` if they could not be written.
        """
        return self._weights()[0]

    def _weights(self) -> tuple[dict[str, NDArray[Any]], int]:
        """Return the weights after the last epoch, and the number of steps up to there."""
        arrays, metadata = read(self.folder / EPOCH_WEIGHTS)
        epoch = self.history[-1].epoch
        if metadata.get("epoch") != str(epoch):
            raise RunError(
                f"{self.folder / EPOCH_WEIGHTS}: is of epoch {metadata.get('epoch')}: expected that of epoch {epoch}; "
                "server.log in the run's folder reports why it could not be written"
            )
        return arrays, int(metadata["step"])

    def model(self) -> Any:
        """Return a new model with the weights after the last epoch, in evaluation mode; as `Run.model`.

        Raises as `state_dict`.
        """
        return model_with(self.folder, self.job, *self._weights())


class Callback:
    """Does nothing at any time: a subclass defines what it needs.

    A callback acts between two epochs, which count from 1, and the run waits for it. An exception ends the run, in
    order: `fit` then raises `CallbackError` with that exception as its cause, or the exception itself if it is a
    `LockstepError`.

    Differs from Keras: `on_epoch_end(self, training, epoch)` has the run and a record of figures instead of a number
    and `logs`; there are no callbacks for batches.
    """

    def on_train_begin(self, training: Training) -> None:
        """Called before the first epoch; the job is known to be good, and nothing is computed yet."""

    def on_epoch_end(self, training: Training, epoch: EpochRecord) -> None:
        """Called after an epoch and its evaluation, which `epoch` records: each once, in order, the last too."""

    def on_train_end(self, training: Training) -> None:
        """Called after the run has ended well: by itself, early, or by `training.stop()`."""


@dataclass(frozen=True)
class EarlyStopping(Callback):
    """Stop after `patience` epochs in a row that were not better than the best one by more than `min_delta`.

    `monitor` is a figure of an epoch, as "test_loss" or "val_f1"; by default "val_loss" in a run with
    `validation_split`, and "test_loss" in others. `min_delta` has the unit of that figure. With `restore_best_weights`
    the run's result is the weights of the best epoch, instead of those of the last one. `fit` raises `JobError` for
    other values, and for a figure that the run lacks.

    Differs from Keras: `mode` is needed for a metric of your own only, since the name of any other figure decides the
    direction; there is no `baseline`, and no `start_from_epoch`. The server decides, so that a run stops at the same
    epoch on any number of workers.
    """

    monitor: str | None = None
    patience: int = 3
    min_delta: float = 0.0
    restore_best_weights: bool = False
    mode: Literal["min", "max"] | None = None

    def values(self) -> dict[str, Any]:
        """Return the values of a job that have the same meaning; `patience` is in epochs."""
        values = {"patience": self.patience, "min_delta": self.min_delta, "keep_best": self.restore_best_weights}
        given = {"monitor": self.monitor, "monitor_mode": self.mode}
        return values | {name: value for name, value in given.items() if value is not None}


class LambdaCallback(Callback):
    """Call each function that is given at its time, with the arguments of the method of `Callback` of the same name.

    A function is called once per epoch at most. An exception of it ends the run with `CallbackError`.
    """

    def __init__(
        self,
        *,
        on_train_begin: Callable[[Training], object] | None = None,
        on_epoch_end: Callable[[Training, EpochRecord], object] | None = None,
        on_train_end: Callable[[Training], object] | None = None,
    ) -> None:
        self._begin, self._epoch, self._end = on_train_begin, on_epoch_end, on_train_end

    def on_train_begin(self, training: Training) -> None:
        if self._begin is not None:
            self._begin(training)

    def on_epoch_end(self, training: Training, epoch: EpochRecord) -> None:
        if self._epoch is not None:
            self._epoch(training, epoch)

    def on_train_end(self, training: Training) -> None:
        if self._end is not None:
            self._end(training)


@dataclass
class ModelCheckpoint(Callback):
    """Write the weights to `path` after each epoch, or with `save_best_only` after each that is the best so far.

    `path` may hold figures of the epoch, as "weights-{epoch:02d}-{val_loss:.3f}.safetensors"; if it holds none, the
    file is replaced. `monitor` is as in `EarlyStopping`. A run is resumed from its own checkpoints: these files hold
    weights alone. Raises `JobError` for a `monitor` that the run lacks and a path that cannot be filled in, `RunError`
    if the file cannot be written.

    Differs from Keras: files are safetensors; the job's `monitor_mode` takes the place of `mode`; there is no
    `save_freq`.
    """

    path: str | Path
    monitor: str | None = None
    save_best_only: bool = False
    #: The best figure so far.
    best: float | None = field(default=None, init=False)

    def on_train_begin(self, training: Training) -> None:
        self.best = None
        check_monitor(training.job, self.monitor or training.job.monitored())

    def on_epoch_end(self, training: Training, epoch: EpochRecord) -> None:
        monitor = self.monitor or training.job.monitored()
        figure = figure_of(epoch, monitor)
        is_best = self.best is None or is_better(figure, self.best, is_higher=is_higher_better(training.job, monitor))
        if is_best:
            self.best = figure
        if is_best or not self.save_best_only:
            path = self._path(epoch)
            arrays = training.state_dict()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, arrays, {"epoch": str(epoch.epoch), monitor: repr(figure)})
            except OSError as error:
                reason = error.strerror or str(error)
                raise RunError(
                    f"ModelCheckpoint cannot write {str(path)!r}: {reason}: expected a file's path"
                ) from error

    def _path(self, epoch: EpochRecord) -> Path:
        figures = {name: value for name, value in msgspec.structs.asdict(epoch).items() if value not in (None, {}, "")}
        try:
            return Path(str(self.path).format(**figures))
        except (KeyError, IndexError, ValueError) as error:
            raise JobError(
                f"path = {str(self.path)!r} cannot be filled in: {error}: expected names of {', '.join(figures)}, as "
                "in 'weights-{epoch:02d}.safetensors'"
            ) from error


#: The methods that are called, and what each is given.
CALLED = {"on_train_begin": ("training",), "on_epoch_end": ("training", "epoch"), "on_train_end": ("training",)}


def check_form(callbacks: Sequence[Callback]) -> None:
    """Raise `JobError` if one is not a callback, or has a method that would not be called as it is written."""
    if isinstance(callbacks, Callback):
        raise JobError(f"callbacks = {callbacks!r}: expected a list, even for one callback: callbacks=[…]")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise JobError(
                f"callbacks has {callback!r}: expected a Callback, such as the instance EarlyStopping(); for a "
                "function, write LambdaCallback(on_epoch_end=…)"
            )
        # Keras and Lightning would call others.
        unknown = [name for name in dir(type(callback)) if name.startswith("on_") and name not in CALLED]
        if unknown:
            raise JobError(
                f"{type(callback).__name__} has {unknown[0]!r}, which is never called: expected {', '.join(CALLED)}; "
                "the figures of each step are in metrics.jsonl in the run's folder"
            )
        for name, given in CALLED.items():
            _check_parameters(callback, name, given)


def _check_parameters(callback: Callback, name: str, given: tuple[str, ...]) -> None:
    parameters = inspect.signature(getattr(callback, name))
    with suppress(TypeError):
        parameters.bind(*given)
        # Keras's `on_epoch_end(epoch, logs)` would take the run for the epoch's number.
        if "logs" not in parameters.parameters:
            return
    raise JobError(
        f"{type(callback).__name__}.{name}{parameters} is called with ({', '.join(given)}): expected "
        f"def {name}(self, {', '.join(given)})"
    )


@dataclass
class CallbackRunner:
    """Calls the callbacks of one run, each once for each epoch, however often a restarted server asks."""

    callbacks: Sequence[Callback]
    training: Training
    #: After which epoch a callback stopped the run, None while none has.
    _stopped_after: int | None = field(default=None, init=False)

    def begin(self) -> None:
        for callback in self.callbacks:
            _call(callback.on_train_begin, self.training)

    def is_to_stop(self, history: Sequence[EpochRecord]) -> bool:
        """Call `on_epoch_end` for each new epoch; return whether the run ends with the last of them."""
        training = self.training
        last = training.history[-1].epoch if training.history else 0
        for epoch in (epoch for epoch in history if epoch.epoch > last):
            training.history.append(epoch)
            for callback in self.callbacks:
                _call(callback.on_epoch_end, training, epoch)
            if training.is_stopped and self._stopped_after is None:
                self._stopped_after = epoch.epoch
        return self._stopped_after is not None and history[-1].epoch >= self._stopped_after

    def end(self, history: Sequence[EpochRecord]) -> None:
        """Call `on_epoch_end` for the last epoch, after which nothing is asked, and `on_train_end`."""
        self.is_to_stop(history)
        for callback in self.callbacks:
            _call(callback.on_train_end, self.training)


def _call(method: Callable[..., object], *arguments: object) -> None:
    try:
        method(*arguments)
    except LockstepError:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise CallbackError(f"{method.__qualname__} raised {text}: the run ends") from error
