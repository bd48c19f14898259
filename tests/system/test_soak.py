"""A seed decides a run of the soak and its faults; one of these runs ends with the digest of one process."""

import pytest

from tests.system.hosts import why_not
from tests.system.soak import JOBS, KINDS, SHAPES, Plan, soak

#: The seed of a run with three servers.
SEED = 4


def test_a_seed_decides_a_plan_and_seeds_cover_all_jobs_and_faults() -> None:
    plans = [Plan.of(seed) for seed in range(100)]
    assert plans == [Plan.of(seed) for seed in range(100)]
    assert ({plan.job for plan in plans}, {plan.roles for plan in plans}) == (set(JOBS), set(SHAPES))
    assert {fault.kind for plan in plans for fault in plan.faults} == set(KINDS)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason="network namespaces may not be made here")
def test_a_run_of_the_soak_ends_with_the_digest_of_one_process() -> None:
    line, is_right, shown = soak(SEED)
    assert is_right, f"{line}\n{shown}"
