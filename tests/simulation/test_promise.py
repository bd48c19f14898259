"""THE PROMISE: one job, one digest, whoever computed it, and whatever went over a network or lay in shared memory.

What may happen to processes and connections meanwhile is drawn from seeds: tests/simulation/seeds.
"""

from functools import cache
from pathlib import Path

import pytest

from lockstep.common.protocol.run_options import RunOptions
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.oracle import RunRecords, reference_run
from tests.simulation.small import JOBS, digits, long_test_set


@cache
def alone(name: str) -> RunRecords:
    """Return the run of one process without any transport: the oracle."""
    return reference_run(JOBS[name], digits())


#: Workers, and how many of them share memory: each job has two of these.
SHAPES = [(1, 0), (2, 2), (3, 2), (8, 0)]


@pytest.mark.parametrize(
    ("name", "workers", "sharing"),
    [(name, *SHAPES[(number + more) % 4]) for number, name in enumerate(JOBS) for more in (0, 2)],
)
def test_any_number_of_workers_gives_the_bits_and_records_of_one_process(
    short_root: Path, name: str, workers: int, sharing: int
) -> None:
    root = short_root if sharing else None
    with Simulation(JOBS[name], workers, RunOptions(min_workers=workers), root=root) as simulation:
        for number in range(workers):
            simulation.add_worker(shares=number < sharing)
        simulation.prove(alone(name))
    assert simulation.result().transport == {0: "memory", 2: "shm+memory" if workers > 2 else "shm"}[sharing]
    assert list(short_root.iterdir()) == []


def test_more_workers_than_micro_batches_give_the_same_bits() -> None:
    simulation = Simulation(JOBS["linear"], 5, RunOptions(min_workers=10))
    for _ in range(10):
        simulation.add_worker()
    simulation.prove(alone("linear"))
    assert len([text for text in simulation.heard if "4 micro-batches keep 4 workers busy" in text]) == 6


def test_the_jobs_give_different_bits_and_so_do_their_seeds() -> None:
    assert len({alone(name).result.weights_sha256 for name in JOBS}) == len(JOBS)


def test_workers_that_come_during_an_evaluation_take_part_in_it() -> None:
    simulation = Simulation(JOBS["linear"], 4, data=long_test_set)
    first = simulation.add_worker()
    simulation.run(until=lambda: simulation.server.coordinator.round.work == "evaluate")
    first.die()
    for _ in range(2):
        simulation.add_worker()
    simulation.prove(reference_run(JOBS["linear"], long_test_set()))
