"""A seed decides a run of the soak and its faults; one of these runs ends with the digest of one process."""

import pytest

from tests.system.hosts import why_not
from tests.system.soak import CALLBACK, DELETE, FILL, JOBS, KINDS, RANK_KINDS, RANKS, TRAIN_KINDS, Plan, soak

#: The seed of a run with three servers: a shard is cut off, another one is killed, and the disk of the server is full.
SEED = 113


def test_a_seed_decides_a_plan_and_seeds_cover_all_jobs_and_faults() -> None:
    plans = [Plan.of(seed) for seed in range(100)]
    assert plans == [Plan.of(seed) for seed in range(100)]
    assert {plan.job for plan in plans} == {*JOBS, CALLBACK}
    assert {fault.kind for plan in plans for fault in plan.faults} == {*KINDS, *TRAIN_KINDS, DELETE, FILL}
    assert {bool(plan.clocks) for plan in plans} == {True, False}
    assert all(0 <= fault.host < len(plan.roles) for plan in plans for fault in plan.faults)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason="network namespaces may not be made here")
def test_a_run_of_the_soak_ends_with_the_digest_of_one_process() -> None:
    line, is_right, shown = soak(SEED)
    assert is_right, f"{line}\n{shown}"


def test_a_plan_with_ranks_has_one_on_each_host_and_faults_of_hosts_and_of_their_processes() -> None:
    plans = [Plan.of(seed, has_ranks=True) for seed in range(100)]
    assert {plan.roles for plan in plans} == {("rank",) * RANKS}
    assert {fault.kind for plan in plans for fault in plan.faults} == {*RANK_KINDS, DELETE, FILL}
