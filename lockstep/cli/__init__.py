"""The command line. A process that imports it is ours, and has one BLAS thread before NumPy is imported (rule R4)."""

from lockstep.common.runtime.environment import use_one_blas_thread

use_one_blas_thread()
