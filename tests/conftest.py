"""One BLAS thread for every test (rule R4): with more, the same product may have other bits."""

from common.environment import use_one_blas_thread

use_one_blas_thread()

from common.blas import limit_blas_threads  # noqa: E402

limit_blas_threads()
