"""What runs of your own while a run goes on: the base class of callbacks.

    >>> from lockstep import EarlyStopping, LambdaCallback, fit, nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    >>> told = []
    >>> run = fit(
    ...     model, "digits.npz", epochs=20, workers=0, global_batch=32, verbose=False, validation_split=0.25,
    ...     callbacks=[
    ...         EarlyStopping(monitor="val_loss", patience=2, restore_best=True),
    ...         LambdaCallback(on_epoch_end=lambda training, epoch: told.append(epoch.val_loss)),
    ...     ],
    ... )
    >>> len(told) == len(run.history) <= 20
    True
    >>> run.history[run.result.weights_epoch - 1].val_loss == min(told)
    True

There are two kinds, and both keep the promise: the same job, with the same callbacks, gives the same bits on any number
of workers.

*Values of the job.* `EarlyStopping` becomes `patience`, `monitor`, `min_delta` and `keep_best` of the job. The server
decides by them at the end of each epoch, from the history alone; so they are in `job.toml`, they are flags of
`lockstep train`, and a run that is gone on with, or verified, comes to the same end without any Python of yours.

*Code.* Every other callback runs in the process that called `fit`, between two epochs, and the run waits for it: the
next epoch begins when `on_epoch_end` of all callbacks has returned, and not at all where one called `training.stop()`.
No step is made meanwhile, so that where the run ends does not depend on how long a callback took. Server and workers go
on answering; each epoch costs a tenth of a second of waiting. The alternative, a word that reaches the server at some
later step, would end the run at a step that differs from machine to machine.

Schedules count to the end of all epochs of the job, whether the run comes to it or not.

There is nothing to be called after each step: steps are made by other processes, faster than this one could follow;
`metrics.jsonl` in the run's folder has a line for each.
"""

from common.protocol.messages import EpochStatus
from lockstep.api.callbacks.training import Training


class Callback:
    """Does nothing at any time: a subclass defines what it needs. What it raises ends the run, in order."""

    def on_train_begin(self, training: Training) -> None:
        """Before the first epoch; the job is known to be good, and nothing is computed yet."""

    def on_epoch_end(self, training: Training, epoch: EpochStatus) -> None:
        """After an epoch and its evaluation, which the record `epoch` tells of: each once, in order, the last too."""

    def on_train_end(self, training: Training) -> None:
        """After the run has ended well: of itself, early, or by `training.stop()`."""
