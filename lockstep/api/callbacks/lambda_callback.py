"""A callback made of functions, where a class would be too much."""

from collections.abc import Callable

from common.protocol.messages import EpochStatus
from lockstep.api.callbacks.callback import Callback
from lockstep.api.callbacks.training import Training


class LambdaCallback(Callback):
    """Call each function that is given at its time, with what the method of `Callback` of the same name gets."""

    def __init__(
        self,
        *,
        on_train_begin: Callable[[Training], object] | None = None,
        on_epoch_end: Callable[[Training, EpochStatus], object] | None = None,
        on_train_end: Callable[[Training], object] | None = None,
    ) -> None:
        self._begin, self._epoch, self._end = on_train_begin, on_epoch_end, on_train_end

    def on_train_begin(self, training: Training) -> None:
        if self._begin is not None:
            self._begin(training)

    def on_epoch_end(self, training: Training, epoch: EpochStatus) -> None:
        if self._epoch is not None:
            self._epoch(training, epoch)

    def on_train_end(self, training: Training) -> None:
        if self._end is not None:
            self._end(training)
