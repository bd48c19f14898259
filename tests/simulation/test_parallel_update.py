"""Workers that help with updates: the bits stay those of one process, and an interrupt finds a whole update."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.setup import AdmissionPolicy
from lockstep.ps.shared_memory.parallel_update import ParallelUpdateConfig
from lockstep.worker.shell import WorkerShell
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.simulation.cluster import Member, Simulation
from tests.simulation.small import JOBS
from tests.simulation.test_promise import alone

#: All ways in turn, for vectors however small.
HELPING = ParallelUpdateConfig(cores=4, least_values=1, unit=16, is_measured=False, withdraw_s=0.5, patience_s=5.0)

#: Values of a slice that are made at once, for jobs of which forty would be a thousandth of it.
PARTS = {"mlp": 50_000, "lenet": 10_000, "cnn": 50_000}


@contextmanager
def simulated(root: Path, name: str, *, workers: int) -> Iterator[Simulation]:
    admission, part = AdmissionPolicy(min_workers=workers), PARTS.get(name, 40)
    with Simulation(JOBS[name], workers, admission, root=root, helping=HELPING, part=part) as simulation:
        for _ in range(workers):
            simulation.add_worker()
        yield simulation
    assert list(root.iterdir()) == []


def slow_of(simulation: Simulation) -> Member[WorkerShell] | None:
    """Return a worker that has made one part of its slice, and not all, while an update waits for it."""
    for worker in simulation.workers:
        slices = worker.runner._slices
        if slices is not None and slices._at_hand is not None and slices._at_hand.parts:
            return worker
    return None


def stop_in_slice(simulation: Simulation) -> Member[WorkerShell]:
    simulation.run(until=lambda: bool(simulation.server.group.updating.state.loans) and slow_of(simulation) is not None)
    worker = slow_of(simulation)
    assert worker is not None, "no worker was ever in the middle of a slice"
    worker.process.stop()
    return worker


@pytest.mark.parametrize(("name", "workers"), list(zip(JOBS, [1, 2, 3, 2, 3, 5, 2], strict=True)))
def test_any_number_of_workers_that_help_gives_the_bits_of_one_process(
    short_root: Path, name: str, workers: int
) -> None:
    with simulated(short_root, name, workers=workers) as simulation:
        simulation.prove(alone(name))
        assert simulation.server.group.updating.state.leased > 0


@pytest.mark.parametrize("is_inside", [False, True])
def test_an_interrupt_within_an_update_ends_the_run_after_it(short_root: Path, is_inside: bool) -> None:
    with simulated(short_root, "noisy", workers=2) as simulation:
        if is_inside:
            stop_in_slice(simulation)
        else:
            simulation.run(until=lambda: bool(simulation.server.group.updating.state.loans))
        step = simulation.server.coordinator.round.step
        simulation.server.interrupt()
        assert isinstance(simulation.server.ended, Finish)
        assert simulation.server.shard.updates == step + 1
        assert simulation.recorder.steps == step + 1


@LINUX_ONLY
def test_nothing_is_left_open_after_memory_was_moved(short_root: Path) -> None:
    with nothing_left_open():
        moved(short_root)


def moved(root: Path) -> None:
    with simulated(root, "noisy", workers=3) as simulation:
        sleeper = stop_in_slice(simulation)
        simulation.run(until=lambda: simulation.sharing is not None and simulation.sharing.generation == 1)
        sleeper.process.resume()
        simulation.finish()


def test_a_vector_that_is_short_is_never_leased(short_root: Path) -> None:
    helping = ParallelUpdateConfig(cores=4)
    with Simulation(JOBS["linear"], root=short_root, helping=helping) as simulation:
        simulation.add_worker()
        simulation.prove(alone("linear"))
        assert simulation.server.group.updating.state.leased == 0
