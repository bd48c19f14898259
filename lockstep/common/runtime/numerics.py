"""The numerics that this process computes with at the moment: portable or native.

They are plain state of the process, and may change at any time: code that is bound to its leaves after the change
computes with the new ones. `lockstep.common.numerics.choice` says which of them this machine can have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

#: Portable: products, sums, functions and convolutions by our own kernels, the same bits on every processor. Native: by
#: NumPy and its BLAS, the same bits on processors of one kind.
Numerics = Literal["native", "portable"]

_used: Numerics = "portable"


def own_numerics() -> Numerics:
    """Return the numerics that this process computes with."""
    return _used


def use_numerics(numerics: Numerics) -> None:
    """Compute with these numerics from now on, in all threads."""
    global _used  # one process has one kind of numerics: an argument would go through every primitive
    _used = numerics


@contextmanager
def kept_numerics() -> Iterator[None]:
    """Within the context the numerics may change; afterwards they are as before."""
    before = own_numerics()
    try:
        yield
    finally:
        use_numerics(before)
