"""The only reader of the environment and of what this machine offers; must stay importable before NumPy."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress

#: What the BLAS libraries that NumPy may be linked with read, once, when they are loaded.
BLAS_THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "OMP_NUM_THREADS",
)

#: What the flags `--keys` and `--key` may be given by.
KEY_VARIABLES = ("LOCKSTEP_KEYS", "LOCKSTEP_KEY")


def use_one_blas_thread() -> None:
    """Make every BLAS that is loaded from now on, here and in child processes, use one thread (rule R4).

    The bits of a matrix product change with the number of threads. To be called before NumPy is first imported; where
    it already was, `numerics.limit_blas_threads` does the same to the loaded library.
    """
    for name in BLAS_THREAD_VARIABLES:
        os.environ[name] = "1"


def cores() -> int:
    """Return the number of cores this process may use, which a container or `taskset` may have lowered."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_to_core(pid: int, number: int) -> None:
    """Keep a process, and threads that it starts later, on one of the cores that we may use, counted round.

    Nothing happens where the system has no such thing, or where the process is gone.
    """
    if sys.platform == "linux":
        mine = sorted(os.sched_getaffinity(0))
        with suppress(ProcessLookupError):
            os.sched_setaffinity(pid, {mine[number % len(mine)]})


def child_environment() -> Mapping[str, str]:
    """Return the environment for processes that we start: ours, with output written as it comes.

    Without the keys of a person: in a run of this machine nobody is asked for any, and others are told by flags.
    """
    ours = {name: value for name, value in os.environ.items() if name not in KEY_VARIABLES}
    return {**ours, "PYTHONUNBUFFERED": "1"}


def cache_home(environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder for what can be had again, as the XDG Base Directory Specification says."""
    given = environ.get("XDG_CACHE_HOME", "")
    # A path that is not absolute is to be ignored, says the specification.
    return given if os.path.isabs(given) else os.path.expanduser("~/.cache")


def own_environment() -> Mapping[str, str]:
    """Return what whoever started this process has put into its environment."""
    return os.environ
