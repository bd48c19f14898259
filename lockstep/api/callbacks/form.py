"""Whether callbacks have the form in which they are called: told before a run begins, and not after its first epoch."""

import inspect
from collections.abc import Sequence

from common.errors import JobError
from lockstep.api.callbacks.callback import Callback

#: The methods that are called, and what each is given.
CALLED = {"on_train_begin": ("training",), "on_epoch_end": ("training", "epoch"), "on_train_end": ("training",)}


def check_form(callbacks: Sequence[Callback]) -> None:
    """Raise `JobError` where one is no callback, or has a method that would not be called as it is written."""
    if isinstance(callbacks, Callback):
        raise JobError(f"callbacks = {callbacks!r}: expected a list, also of one: callbacks=[…]")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise JobError(
                f"callbacks has {callback!r}: expected a Callback; of a class write an instance, EarlyStopping(), and "
                "of a function LambdaCallback(on_epoch_end=…)"
            )
        _check_names(callback)
        for name, given in CALLED.items():
            _check_parameters(callback, name, given)


def _check_names(callback: Callback) -> None:
    """Refuse what Keras and Lightning would call, and nobody here."""
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
