"""Simulated runs in which all goes wrong that can come to the bits of one process; planted bugs are found."""

import subprocess
import sys

import pytest

from lockstep.common.runtime.environment import child_environment
from tests.architecture.source import ROOT
from tests.simulation.seeds.planted import PLANTED
from tests.simulation.seeds.planted_in_teams import OF_TEAMS
from tests.simulation.simulator.oracle import simulate
from tests.simulation.simulator.scenario import FaultKind, scenario_of

#: All bugs that are planted, by what is wrong.
BUGS = {**PLANTED, **OF_TEAMS}

#: Seeds that are tried, and how many of them in one test: tests are spread over the cores.
SEEDS, EACH = 12, 6

#: Seeds within which a planted bug is found, and every fault occurs.
SEARCHED = 500

#: Seeds of runs with many processes: in these, the order of a set of addresses would show.
OF_MANY = (2, 6, 13)


@pytest.mark.parametrize("first", range(0, SEEDS, EACH))
def test_every_seed_keeps_the_promise(first: int) -> None:
    for seed in range(first, first + EACH):
        assert simulate(scenario_of(seed)).violations == (), f"replay: scripts/simulate --seeds {seed} --trace"


def test_a_process_that_takes_anothers_place_leaves_its_sums_alone() -> None:
    """Before a long run, it proved its programs over the sums of the one before it, which the team still read."""
    assert simulate(scenario_of(307)).violations == ()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SEEDS, 5000, 100))
def test_many_more_seeds_keep_the_promise(first: int) -> None:
    for seed in range(first, first + 100):
        assert simulate(scenario_of(seed)).violations == (), f"replay: scripts/simulate --seeds {seed} --trace"


@pytest.mark.slow
def test_a_long_run_is_not_taken_for_one_that_is_stuck() -> None:
    assert simulate(scenario_of(1, workers=2, servers=1, steps=1000)).violations == ()


def test_a_process_that_is_restarted_in_a_long_run_leaves_the_sums_of_the_one_before_as_they_are() -> None:
    assert simulate(scenario_of(1137)).violations == ()


def test_a_server_that_is_killed_once_its_result_is_written_has_led_the_run_to_its_end() -> None:
    assert simulate(scenario_of(771025, servers=1)).violations == ()


def test_sums_that_a_shard_drops_before_it_knows_their_connection_are_computed_again_by_the_only_worker() -> None:
    assert simulate(scenario_of(2266)).violations == ()


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_as_what_it_is_by_the_first_seed_that_is_tried(bug: str) -> None:
    """If a later seed finds it, write that into the table: the search would become longer unnoticed."""
    planted = BUGS[bug]
    assert planted.found_by(range(planted.first, SEARCHED)) == planted.first


def digests(*seeds: int) -> list[str]:
    """Return the digests of runs of many processes."""
    return [simulate(scenario_of(seed, servers=3, workers=4)).world.digest() for seed in seeds]


def test_a_seed_replays_identically_in_a_process_with_other_hashes() -> None:
    """The order of a set of texts or bytes differs from process to process: no decision may depend on it."""
    program = f"from {__name__} import digests; print(digests(*{OF_MANY}))"
    other = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**child_environment(), "PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = digests(*OF_MANY)
    assert other.stdout == f"{found}\n"
    assert len(set(found)) == len(OF_MANY)


def test_all_that_can_happen_does() -> None:
    message = {it.kind for seed in range(SEARCHED) for it in scenario_of(seed).faults}
    assert message == set(FaultKind)
