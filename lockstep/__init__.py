"""Train neural networks on many processes, in NumPy: the same job gives the same bits.

from lockstep import Tensor, no_grad, nn, F, optim, fit
run = fit("mlp", "mnist", workers=4, epochs=3)
"""

from common.runtime.environment import use_one_blas_thread
from common.runtime.memory import keep_freed_memory

use_one_blas_thread()  # rule R4: before NumPy is imported, here and in the processes that we start
keep_freed_memory()  # a fifth of a step of `cnn` at 128 samples

from common import nn, optim  # noqa: E402
from common.autograd import functional as F  # noqa: E402
from common.autograd.graph import no_grad  # noqa: E402
from common.autograd.tensor import Tensor  # noqa: E402
from common.runtime.blas import limit_blas_threads  # noqa: E402
from lockstep.api.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint  # noqa: E402
from lockstep.api.fit import fit, resume  # noqa: E402
from lockstep.api.learning_rates import find_lr  # noqa: E402
from lockstep.api.run import Run, load_run  # noqa: E402
from lockstep.doctor.consultation import doctor  # noqa: E402

limit_blas_threads()  # rule R4 once more: a notebook may have imported NumPy already

__all__ = [
    "Callback",
    "EarlyStopping",
    "F",
    "LambdaCallback",
    "ModelCheckpoint",
    "Run",
    "Tensor",
    "doctor",
    "find_lr",
    "fit",
    "load_run",
    "nn",
    "no_grad",
    "optim",
    "resume",
]
