"""Calls a run's callbacks, each once for each epoch, however often a restarted server asks; checks their form first."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lockstep.api.callbacks import Callback, Training
from lockstep.common.errors import CallbackError, JobError, LockstepError
from lockstep.common.protocol.messages import EpochStatus

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
        _check_names(callback)
        for name, given in CALLED.items():
            _check_parameters(callback, name, given)


def _check_names(callback: Callback) -> None:
    """Refuse methods that Keras and Lightning would call, and that are never called here."""
    unknown = [name for name in dir(type(callback)) if name.startswith("on_") and name not in CALLED]
    if unknown:
        raise JobError(
            f"{type(callback).__name__} has {unknown[0]!r}, which is never called: expected {', '.join(CALLED)}; the "
            "figures of each step are in metrics.jsonl in the run's folder"
        )


def _check_parameters(callback: Callback, name: str, given: tuple[str, ...]) -> None:
    parameters = inspect.signature(getattr(callback, name))
    try:
        parameters.bind(*given)
    except TypeError:
        fits = False
    else:
        # Keras's `on_epoch_end(epoch, logs)` would take the run for the epoch's number.
        fits = "logs" not in parameters.parameters
    if not fits:
        raise JobError(
            f"{type(callback).__name__}.{name}{parameters} is called with ({', '.join(given)}): expected "
            f"def {name}(self, {', '.join(given)})"
        )


@dataclass
class CallbackRunner:
    """The callbacks of one run, and what they have decided."""

    callbacks: Sequence[Callback]
    training: Training
    #: After which epoch a callback stopped the run, None while none has.
    _stopped_after: int | None = field(default=None, init=False)

    def begin(self) -> None:
        """Call `on_train_begin` of all callbacks."""
        for callback in self.callbacks:
            _call(callback.on_train_begin, self.training)

    def is_to_stop(self, history: Sequence[EpochStatus]) -> bool:
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

    def end(self, history: Sequence[EpochStatus]) -> None:
        """Call `on_epoch_end` for the last epoch, after which nobody asks, and `on_train_end`."""
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
