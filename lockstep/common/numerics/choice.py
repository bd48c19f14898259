"""The numerics that a process of this machine can have, and the choice of those of a job."""

from functools import cache

import msgspec

from lockstep.common.errors import NumericsError
from lockstep.common.numerics.kernels.library import SELF_TEST_DIGEST, load
from lockstep.common.runtime.numerics import Numerics, use_numerics


class Kernels(msgspec.Struct, frozen=True, kw_only=True):
    """The kernels of this machine, for people and for the fingerprint."""

    #: The processors that they are compiled for, such as "avx512"; empty without kernels.
    target: str = ""
    #: The digest of what they compute in their self-test; empty without kernels.
    digest: str = ""
    #: The reason why no kernels were loaded.
    obstacle: str = ""


@cache
def kernels_here() -> Kernels:
    """Return the kernels that this process has loaded, or why it cannot load any."""
    try:
        return Kernels(target=load().target, digest=SELF_TEST_DIGEST)
    except NumericsError as error:
        return Kernels(obstacle=str(error))


def check_kernels(kernels: Kernels) -> None:
    """Raise `NumericsError` if these kernels could not be loaded."""
    if kernels.obstacle:
        raise NumericsError(
            f"numerics = 'portable' on a machine without kernels: {kernels.obstacle}; or use numerics = 'native', and "
            "give up equal bits on other kinds of machines"
        )


def take_numerics(numerics: Numerics) -> None:
    """Compute with the numerics of a job from now on; `NumericsError` if this machine cannot have them."""
    if numerics == "portable":
        check_kernels(kernels_here())
    use_numerics(numerics)


def prefer_numerics(numerics: Numerics) -> None:
    """Compute with these numerics if this machine can have them, and otherwise with native ones.

    For predictions and figures, which are as good, and for computations before any job is known.
    """
    use_numerics("native" if kernels_here().obstacle else numerics)
