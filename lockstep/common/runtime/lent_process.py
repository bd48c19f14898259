"""Settings of a process that is not ours while Lockstep computes in it, restored afterwards.

`import lockstep` changes nothing that a program's other parts can notice. Computing needs one thread (rule R4), and
PyTorch some settings. In the processes that Lockstep starts, and in its commands, they stay; in a user's process they
last as long as `computing`.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from lockstep.common.runtime.blas import blas_name, blas_threads, can_limit_blas_threads, set_blas_threads
from lockstep.common.runtime.environment import has_one_blas_thread


@dataclass
class _Loan:
    """The settings to restore when the last of several calls, in whatever threads, has ended."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    depth: int = 0
    undo: ExitStack = field(default_factory=ExitStack)
    #: The functions that restore them.
    names: set[str] = field(default_factory=set)


_loan = _Loan()


@contextmanager
def computing() -> Iterator[None]:
    """Within the context, compute with one BLAS thread; afterwards, with as many as before.

    May be nested, and entered by several threads: the last one that leaves gives back. Warns if the loaded BLAS has no
    such switch and was not limited by the environment either.
    """
    with _loan.lock:
        _loan.depth += 1
        if _loan.depth == 1:
            _limit(has_switch=can_limit_blas_threads(), is_limited=has_one_blas_thread())
    try:
        yield
    finally:
        with _loan.lock:
            _loan.depth -= 1
            if not _loan.depth:
                _loan.names.clear()
                _loan.undo.close()


def _limit(*, has_switch: bool, is_limited: bool) -> None:
    if has_switch:
        before = blas_threads()
        set_blas_threads(1)
        _loan.undo.callback(set_blas_threads, before)
    elif not is_limited:
        warnings.warn(
            f"the BLAS of this NumPy, {blas_name()!r}, may compute with several threads here, and so to other bits "
            "than a worker: set OMP_NUM_THREADS=1 before Python starts, or train with workers=1",
            RuntimeWarning,
            stacklevel=2,
        )


def lend(name: str, take: Callable[[], Callable[[], object]]) -> None:
    """Let what `take` returns be called when the outermost `computing` ends; nothing outside of one.

    `take` notes how something is now, before it is changed: once for each name.
    """
    if _loan.depth and name not in _loan.names:
        _loan.names.add(name)
        _loan.undo.callback(take())
