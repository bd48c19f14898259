"""Calls a run's callbacks, each once for each epoch, however often a server that was started again asks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.errors import CallbackError, LockstepError
from common.protocol.messages import EpochStatus
from lockstep.api.callbacks.callback import Callback
from lockstep.api.callbacks.training import Training


@dataclass
class CallbackRunner:
    """The callbacks of one run, and what they have said."""

    callbacks: Sequence[Callback]
    training: Training
    #: After which epoch a callback stopped the run, None while none has.
    _stopped_after: int | None = field(default=None, init=False)

    def begin(self) -> None:
        """Tell all that the run begins."""
        for callback in self.callbacks:
            _call(callback.on_train_begin, self.training)

    def is_to_stop(self, history: Sequence[EpochStatus]) -> bool:
        """Tell of the epochs that are over and new; return whether the run ends with the last of them."""
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
        """Tell of the last epoch, after which nobody asks, and of the end."""
        self.is_to_stop(history)
        for callback in self.callbacks:
            _call(callback.on_train_end, self.training)


def _call(method: Callable[..., object], *told: object) -> None:
    try:
        method(*told)
    except LockstepError:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise CallbackError(f"{method.__qualname__} raised {text}: the run is ended") from error
