"""Workers that help with updates, and what may happen to them meanwhile: the bits stay those of one process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lockstep.common.job.job import Job
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.setup import AdmissionPolicy
from lockstep.ps.shared_memory.parallel_update import ParallelUpdateConfig, UpdateMode, UpdatePhase
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.simulation.cluster import Simulation, Worker
from tests.simulation.small import JOBS
from tests.simulation.test_promise import alone

#: All ways in turn, for vectors however small. Time passes in ticks of 10 ms.
HELPING = ParallelUpdateConfig(cores=4, least_values=1, unit=16, is_measured=False, withdraw_s=0.5, patience_s=5.0)

#: Jobs with one micro-batch tree each of whose sums lies in memory: what is rounded too.
NAMES = list(JOBS)


@contextmanager
def simulated(
    root: Path, name: str = "linear", seed: int = 0, *, workers: int = 2, part: int = 40
) -> Iterator[Simulation]:
    admission = AdmissionPolicy(min_workers=workers)
    simulation = Simulation(JOBS[name], seed, admission, root=root, helping=HELPING, part=part)
    with simulation:
        for _ in range(workers):
            simulation.add_worker()
        yield simulation
    assert list(root.iterdir()) == []


def is_updating(simulation: Simulation, mode: UpdateMode = UpdateMode.TOGETHER) -> Callable[[], bool]:
    """Return whether an update waits for a worker that is in the middle of its slice."""

    def tell() -> bool:
        state = simulation.server.group.updating.state
        return state.mode is mode and bool(state.loans) and slow_of(simulation) is not None

    return tell


def slow_of(simulation: Simulation) -> Worker | None:
    """Return a worker that has made one part of its slice, and not all."""
    for worker in simulation.workers:
        slices = worker.runner._slices
        if worker.can_act() and slices is not None and slices._at_hand is not None and slices._at_hand.parts:
            return worker
    return None


def stop_in_slice(simulation: Simulation) -> Worker:
    simulation.run(until=is_updating(simulation))
    worker = slow_of(simulation)
    assert worker is not None, "no worker was ever in the middle of a slice"
    worker.is_hanging = True
    return worker


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_any_number_of_workers_that_help_gives_the_bits_of_one_process(
    short_root: Path, name: str, workers: int
) -> None:
    with simulated(short_root, name, workers, workers=workers) as simulation:
        assert simulation.finish() == alone(name).weights_sha256
        assert simulation.server.group.updating.state.leased > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_worker_killed_within_its_slice_changes_nothing(short_root: Path, seed: int) -> None:
    with simulated(short_root, "noisy", seed) as simulation:
        stop_in_slice(simulation).die()
        simulation.add_worker()
        assert simulation.finish() == alone("noisy").weights_sha256
        assert simulation.sharing is not None
        assert simulation.sharing.generation == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_that_stands_still_in_its_slice_and_wakes_up_steps_later_tears_nothing(
    short_root: Path, seed: int, steps: int
) -> None:
    with simulated(short_root, "noisy", seed, workers=3) as simulation:
        sleeper = stop_in_slice(simulation)
        at = simulation.server.coordinator.round.step
        simulation.run_to(min(at + steps, 5))
        assert simulation.sharing is not None
        assert simulation.sharing.generation == 1
        sleeper.is_hanging = False
        assert simulation.finish() == alone("noisy").weights_sha256


def test_one_that_stands_still_before_its_slice_never_makes_it(short_root: Path) -> None:
    with simulated(short_root, "noisy", 1, workers=2) as simulation:
        state = simulation.server.group.updating.state
        simulation.run(until=lambda: bool(state.loans))
        for worker in simulation.workers:
            worker.is_hanging = True
        simulation.run(until=lambda: state.phase is UpdatePhase.IDLE)
        assert state.withdrawn
        assert simulation.sharing is not None
        assert simulation.sharing.generation == 0
        for worker in simulation.workers:
            worker.is_hanging = False
        assert simulation.finish() == alone("noisy").weights_sha256
        assert not state.withdrawn


def test_one_that_joins_within_an_update_computes_in_the_new_memory(short_root: Path) -> None:
    with simulated(short_root, "noisy", 2, workers=2) as simulation:
        sleeper = stop_in_slice(simulation)
        joined = simulation.add_worker()
        simulation.run(until=lambda: simulation.sharing is not None and simulation.sharing.generation == 1)
        sleeper.die()
        assert simulation.finish() == alone("noisy").weights_sha256
        assert joined.runner._slices is None or joined.runner._slices.generation == 1


@pytest.mark.parametrize("is_inside", [False, True])
def test_an_interrupt_within_an_update_ends_the_run_after_it(short_root: Path, is_inside: bool) -> None:
    with simulated(short_root, "noisy", 3) as simulation:
        if is_inside:
            stop_in_slice(simulation)
        else:
            simulation.run(until=lambda: bool(simulation.server.group.updating.state.loans))
        step = simulation.server.coordinator.round.step
        simulation.server.interrupt()
        assert isinstance(simulation.server.ended, Finish)
        assert simulation.server.shard.updates == step + 1
        assert simulation.recorder.steps == step + 1


def moved(root: Path) -> None:
    with simulated(root, "noisy", 5, workers=3) as simulation:
        sleeper = stop_in_slice(simulation)
        simulation.run(until=lambda: simulation.sharing is not None and simulation.sharing.generation == 1)
        sleeper.is_hanging = False
        simulation.finish()


@LINUX_ONLY
def test_nothing_is_left_open_after_memory_was_moved(short_root: Path) -> None:
    with nothing_left_open():
        moved(short_root)


def test_a_vector_that_is_short_is_never_leased(short_root: Path) -> None:
    job: Job = JOBS["linear"]
    with Simulation(job, root=short_root, helping=ParallelUpdateConfig(cores=4)) as simulation:
        simulation.add_worker()
        simulation.finish()
        assert simulation.server.group.updating.state.leased == 0
