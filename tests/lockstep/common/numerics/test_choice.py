"""A process takes the numerics of a job; without kernels, portable ones are refused with advice."""

import pytest

from lockstep.common.errors import NumericsError
from lockstep.common.numerics.choice import Kernels, check_kernels, kernels_here, prefer_numerics, take_numerics
from lockstep.common.runtime.numerics import kept_numerics, own_numerics


def test_kernels_have_a_target_and_a_digest_or_an_obstacle() -> None:
    kernels = kernels_here()
    assert bool(kernels.obstacle) != bool(kernels.target and kernels.digest)


def test_without_kernels_portable_numerics_are_refused_with_advice() -> None:
    with pytest.raises(NumericsError, match=r"'portable' on a machine without kernels: no compiler; or use .*'native'"):
        check_kernels(Kernels(obstacle="no compiler"))


def test_a_process_takes_those_of_a_job() -> None:
    with kept_numerics():
        take_numerics("native")
        assert own_numerics() == "native"
        take_numerics("portable")
        assert own_numerics() == "portable"


def test_for_predictions_numerics_are_those_that_can_be_had() -> None:
    with kept_numerics():
        prefer_numerics("portable")
        assert own_numerics() == ("native" if kernels_here().obstacle else "portable")
        prefer_numerics("native")
        assert own_numerics() == "native"
