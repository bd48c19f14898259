"""Train neural networks on many processes, in NumPy: the same job gives the same bits."""

from common.environment import use_one_blas_thread

use_one_blas_thread()  # rule R4: before NumPy is imported, here and in the processes that we start
