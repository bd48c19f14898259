"""Train neural networks on many processes, in NumPy: the same job gives the same bits.

from lockstep import Tensor, no_grad, nn, F, optim, fit
run = fit("mlp", "mnist", workers=4, epochs=3)
"""

from typing import TYPE_CHECKING

from lockstep.common.runtime.environment import keep_freed_memory, use_one_blas_thread
from lockstep.common.runtime.numerics import hold_numerics

use_one_blas_thread()  # rule R4: before NumPy is imported, here and in the processes that we start
hold_numerics()  # of a process that was started with portable numerics: before NumPy is imported, too
keep_freed_memory()  # a fifth of a step of `cnn` at 128 samples

from lockstep.common import nn  # noqa: E402
from lockstep.common.autograd import functional as F  # noqa: E402
from lockstep.common.autograd.graph import no_grad  # noqa: E402
from lockstep.common.autograd.tensor import Tensor  # noqa: E402
from lockstep.common.optim import optimizers as optim  # noqa: E402
from lockstep.common.runtime.blas import limit_blas_threads  # noqa: E402

if TYPE_CHECKING:
    from lockstep.api.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint
    from lockstep.api.fit import fit, resume
    from lockstep.api.learning_rates import find_lr
    from lockstep.api.run import Run, load_run
    from lockstep.checking.checkup.consultation import doctor
    from lockstep.common.autograd.gradient_check import GradientError, check_gradients
    from lockstep.common.data.source import load

limit_blas_threads()  # rule R4 once more: a notebook may have imported NumPy already

__all__ = [
    "Callback",
    "EarlyStopping",
    "F",
    "GradientError",
    "LambdaCallback",
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
            case "fit" | "resume":
                from lockstep.api import fit as module
            case "Callback" | "EarlyStopping" | "LambdaCallback" | "ModelCheckpoint":
                from lockstep.api import callbacks as module
            case "Run" | "load_run":
                from lockstep.api import run as module
            case "find_lr":
                from lockstep.api import learning_rates as module
            case "doctor":
                from lockstep.checking.checkup import consultation as module
            case "load":
                from lockstep.common.data import source as module
            case "GradientError" | "check_gradients":
                from lockstep.common.autograd import gradient_check as module
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(module, name)
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *__all__})
