"""Train neural networks on many processes, in NumPy: the same job gives the same bits.

from lockstep import Tensor, no_grad, nn, F, optim, fit
run = fit("mlp", "mnist", workers=4, epochs=3)
"""

from typing import TYPE_CHECKING

from lockstep.common.runtime.environment import keep_freed_memory

# Only what a user's other code cannot notice. NumPy is not imported here: a process of ours has its own settings first.
keep_freed_memory()  # a fifth of a step of `cnn` at 128 samples

if TYPE_CHECKING:
    from lockstep.api.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint
    from lockstep.api.fit import fit, resume
    from lockstep.api.learning_rates import find_lr
    from lockstep.api.run import Run, load_run
    from lockstep.checking.doctor import doctor
    from lockstep.common import nn
    from lockstep.common.autograd import functional as F
    from lockstep.common.autograd.gradient_check import GradientError, check_gradients
    from lockstep.common.autograd.graph import no_grad
    from lockstep.common.autograd.tensor import Tensor
    from lockstep.common.data.source import load
    from lockstep.common.errors import LockstepError
    from lockstep.common.optim import optimizers as optim

__all__ = [
    "Callback",
    "EarlyStopping",
    "F",
    "GradientError",
    "LambdaCallback",
    "LockstepError",
    "ModelCheckpoint",
    "Run",
    "Tensor",
    "check_gradients",
    "doctor",
    "find_lr",
    "fit",
    "load",
    "load_run",
    "nn",
    "no_grad",
    "optim",
    "resume",
]


if not TYPE_CHECKING:  # to a type checker they are the imports above, and any other name is wrong

    def __getattr__(name):
        """Import what only a person uses when it is first used: each process of a run imports this module."""
        match name:
            case "Tensor":
                from lockstep.common.autograd import tensor as module
            case "no_grad":
                from lockstep.common.autograd import graph as module
            case "fit" | "resume":
                from lockstep.api import fit as module
            case "Callback" | "EarlyStopping" | "LambdaCallback" | "ModelCheckpoint":
                from lockstep.api import callbacks as module
            case "Run" | "load_run":
                from lockstep.api import run as module
            case "find_lr":
                from lockstep.api import learning_rates as module
            case "doctor":
                from lockstep.checking import doctor as module
            case "load":
                from lockstep.common.data import source as module
            case "GradientError" | "check_gradients":
                from lockstep.common.autograd import gradient_check as module
            case "LockstepError":
                from lockstep.common import errors as module
            case "nn":
                from lockstep.common import nn

                return globals().setdefault(name, nn)
            case "F":
                from lockstep.common.autograd import functional

                return globals().setdefault(name, functional)
            case "optim":
                from lockstep.common.optim import optimizers

                return globals().setdefault(name, optimizers)
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, getattr(module, name))

    def __dir__():
        return sorted({*globals(), *__all__})
