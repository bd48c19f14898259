"""The bits of portable numerics are those that other machines computed: canary and weights, by version.

That the weights do not depend on who computes them is tested elsewhere, with native numerics.
"""

import pytest

from lockstep.common.protocol.canary import installed_canary
from tests.golden.digests import Computed, computed, installed, known_weights, weights_known_here
from tests.golden.jobs import GOLDEN
from tests.lockstep.common.runtime.test_numerics import needs_portable


@pytest.fixture(scope="module")
def here() -> Computed:
    return computed(GOLDEN)


def skip_unknown(known: object) -> None:
    if known is None:
        numpy, blas = installed()
        pytest.skip(f"nobody has recorded NumPy {numpy} with {blas}: scripts/golden --record does")


@needs_portable
def test_the_canary_is_the_known_one(here: Computed) -> None:
    known = installed_canary()
    skip_unknown(known)
    assert known is not None
    assert here.canary == known.parts, "changed on purpose? then scripts/golden --record"


@needs_portable
@pytest.mark.parametrize("name", GOLDEN)
def test_the_weights_are_the_known_ones(here: Computed, name: str) -> None:
    known = weights_known_here()
    skip_unknown(known)
    assert known is not None
    assert here.weights[name] == known[name], (
        "changed on purpose? then scripts/golden --record, and a line of CHANGELOG"
    )


def test_each_known_version_has_each_job() -> None:
    known = list(known_weights())
    assert known
    for each in known:
        assert list(each.weights) == list(GOLDEN), f"NumPy {each.numpy}: record it again by scripts/golden --record"
        assert len(set(each.weights.values())) == len(GOLDEN)
