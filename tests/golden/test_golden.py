"""The bits of portable numerics are those that other machines computed."""

import pytest

from lockstep.common.numerics.leaves import CONTRACT_VERSION
from tests.golden.digests import computed, known_weights
from tests.golden.jobs import GOLDEN


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return computed(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_weights_are_the_known_ones(here: dict[str, str], name: str) -> None:
    assert here[name] == known_weights().weights.get(name), (
        "changed on purpose? then scripts/golden --record, and a line of CHANGELOG"
    )


def test_each_job_is_known_by_this_contract_and_has_its_own_digest() -> None:
    known = known_weights()
    assert known.contract == CONTRACT_VERSION
    assert list(known.weights) == list(GOLDEN), "record them again by scripts/golden --record"
    assert len(set(known.weights.values())) == len(GOLDEN)
