"""A planted worker whose memory is faulty: the audit finds it, names it, and applies nothing of the step."""

from dataclasses import replace

import numpy as np
import pytest

from lockstep.checking.simulation.jobs import data, load
from lockstep.checking.simulation.oracle import simulate
from lockstep.checking.simulation.processes import Parts
from lockstep.checking.simulation.scenario import Scenario, scenario_of
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.worker.setup import Loader

#: Seeds that are tried.
SEEDS = range(40)

#: How the message of a difference begins.
DIFFERENCE = "the audit found a difference"


def faulty(name: str) -> TrainTest:
    """Load the data as one does whose memory loses bits once it has been checked."""
    whole = data()
    train = whole.train
    found = TrainTest(whole.name, Dataset(train.images[:].copy(), train.labels, train.classes), whole.test)
    assert found.digest == whole.digest
    found.train.images[:].reshape(-1)[:] ^= np.uint8(64)
    return found


def every_third(number: int) -> Loader:
    """Give one of three processes a faulty memory."""
    return faulty if number % 3 == 2 else load


LYING = Parts(load=every_third)


def audited(seed: int, share: float = 1.0) -> Scenario:
    # With data of their own: what workers are sent is the server's, and true.
    return replace(scenario_of(seed, workers=3, processes=1), audit=share, ships=False)


def calm(seed: int, share: float = 1.0) -> Scenario:
    return replace(audited(seed, share), faults=(), early_kills=(0,) * 4, min_workers=3)


@pytest.mark.parametrize("seed", range(12))
def test_a_worker_that_computes_wrongly_is_named(seed: int) -> None:
    outcome = simulate(calm(seed), LYING)
    (violation,) = outcome.violations
    assert violation.startswith(DIFFERENCE), violation
    # Of the two that are named it is one.
    named = {int(part.partition(")")[0]) for part in violation.split("pid ")[1:]}
    assert len(named) == 2
    assert any(number % 3 == 2 for number in named)


def test_a_share_of_the_micro_batches_is_enough_when_there_are_many_steps() -> None:
    found = [simulate(calm(seed, 0.2), LYING).violations for seed in range(12)]
    assert sum(violation[0].startswith(DIFFERENCE) for violation in found if violation) > 6


def test_it_is_found_among_faults_of_all_kinds() -> None:
    found = [simulate(audited(seed), LYING).violations for seed in SEEDS]
    assert sum(violation[0].startswith(DIFFERENCE) for violation in found if violation) > len(SEEDS) / 2
    # Without another worker to audit, the bits are wrong, as they would be in all runs without an audit.
    allowed = ("weights", "loss")
    texts = [violations[0] for violations in found if violations]
    assert all(text.startswith(DIFFERENCE) or any(word in text for word in allowed) for text in texts)


@pytest.mark.parametrize("seeds", [range(15), pytest.param(SEEDS, marks=pytest.mark.slow)], ids=len)
def test_without_a_fault_the_audit_objects_to_nothing(seeds: range) -> None:
    for seed in seeds:
        assert simulate(audited(seed)).violations == (), f"seed {seed}"
