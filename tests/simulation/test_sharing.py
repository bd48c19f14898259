"""The promise where workers share the server's memory: all of them, or some, and whoever is late tears nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.tree import Vector
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.run.info import RunInfo
from lockstep.ps.setup import AdmissionPolicy
from lockstep.ps.shard.shard import Shard
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.lockstep.ps.careless import CarelessCoordinator
from tests.simulation.cluster import Simulation
from tests.simulation.small import JOBS
from tests.simulation.test_promise import ACTIONS, act, alone


@contextmanager
def simulated(
    root: Path,
    name: str = "linear",
    seed: int = 0,
    *,
    workers: int = 1,
    coordinator_of: Callable[[RunInfo], Coordinator] = Coordinator,
    shard_of: Callable[[Shard], Shard] = lambda shard: shard,
) -> Iterator[Simulation]:
    """A run that offers memory; at its end nothing is left of that."""
    admission = AdmissionPolicy(min_workers=workers)
    simulation = Simulation(JOBS[name], seed, admission, root=root, coordinator_of=coordinator_of, shard_of=shard_of)
    with simulation:
        yield simulation
    assert list(root.iterdir()) == []


def transport(simulation: Simulation) -> str:
    assert simulation.recorder.result is not None
    return simulation.recorder.result.transport


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_any_number_of_workers_that_share_gives_the_bits_of_one_process(
    short_root: Path, name: str, workers: int
) -> None:
    with simulated(short_root, name, workers, workers=workers) as simulation:
        for _ in range(workers):
            simulation.add_worker()
        assert simulation.finish() == alone(name).weights_sha256
        assert transport(simulation) == "shm"


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("seed", range(3))
def test_some_that_share_and_some_that_do_not_give_the_same_bits(short_root: Path, name: str, seed: int) -> None:
    with simulated(short_root, name, seed, workers=3) as simulation:
        for number in range(3):
            simulation.add_worker(shares=number % 2 == seed % 2, doubles=number == 1)
        assert simulation.finish() == alone(name).weights_sha256
        assert transport(simulation) == "shm+memory"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["linear", "noisy", "short"])
def test_any_order_of_arrival_gives_the_same_bits(short_root: Path, name: str, seed: int) -> None:
    with simulated(short_root, name, 100 + seed, workers=3) as simulation:
        for _ in range(3):
            simulation.add_worker(doubles=True)
        assert simulation.finish() == alone(name).weights_sha256


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 60), ACTIONS, st.integers(0, 9)), max_size=12))
def test_whatever_happens_to_workers_changes_nothing(
    short_root: Path, seed: int, story: list[tuple[int, str, int]]
) -> None:
    with simulated(short_root, "short", seed) as simulation:
        simulation.add_worker()
        for turns, action, number in story:
            for _ in range(turns):
                if simulation.server.ended is None:
                    simulation.turn()
            act(simulation, action, number)
        simulation.add_worker(shares=seed % 3 > 0)
        assert simulation.finish() == alone("short").weights_sha256


def late(simulation: Simulation) -> str:
    """Let a worker answer a lease that has ended, after it has written another one's sums into the same slot."""
    late, other = simulation.add_worker(), simulation.add_worker()
    simulation.run(until=lambda: len(simulation.server.coordinator.leases.held) == 2)
    # Both hear what they are to do, and none does it.
    for worker in (late, other):
        while len(worker.runner.state.leases) < 2:
            worker.runner.step()
        worker.is_hanging = True
    simulation.run(until=lambda: sum("leased again" in text for text in simulation.said) == 2)
    # Its first answer makes it one that gets work again.
    while len(late.runner.state.leases) == 2:
        late.runner.step()
    simulation.run_until_quiet()
    # What is left of its old leases, and both new ones, before the server hears of any.
    while late.runner.step() and late.runner.state.leases:
        pass
    late.is_hanging = False
    simulation.run_until_quiet()
    return simulation.finish()


def test_a_late_worker_that_writes_into_a_slot_again_tears_nothing(short_root: Path) -> None:
    with simulated(short_root, workers=2) as simulation:
        assert late(simulation) == alone("linear").weights_sha256


def test_reading_the_slot_of_a_lease_that_has_ended_is_found(short_root: Path) -> None:
    with simulated(short_root, workers=2, coordinator_of=CarelessCoordinator) as simulation:
        assert late(simulation) != alone("linear").weights_sha256


class Forgetful(Shard):
    """A planted bug: leaves sums where a worker will write others."""

    def settle(self, memory: Vector) -> None:
        pass


def forgetful(shard: Shard) -> Shard:
    return Forgetful(shard.slots, shard.policy, shard.micro_batches)


def test_leaving_sums_where_others_will_be_written_is_found(short_root: Path) -> None:
    """A slot is written again within a step only where nobody is known yet: so it takes some of all orders to show."""
    found = set()
    for seed in range(6):
        with simulated(short_root, "lenet", seed, workers=2, shard_of=forgetful) as simulation:
            for _ in range(2):
                simulation.add_worker()
            found.add(simulation.finish())
    assert found != {alone("lenet").weights_sha256}


def test_a_worker_that_wakes_when_its_weights_are_overwritten_changes_nothing(short_root: Path) -> None:
    with simulated(short_root, workers=2) as simulation:
        sleeper = simulation.add_worker()
        simulation.add_worker()
        simulation.run(until=lambda: len(sleeper.runner.state.leases) > 0)
        sleeper.is_hanging = True
        # Two steps on, what its lease is to be computed with is not there any more.
        simulation.run_to(2)
        sleeper.is_hanging = False
        assert simulation.finish() == alone("linear").weights_sha256


#: Part of a path that leaves no room for the name of a socket in that folder.
LONG = "x" * 120


def names_in(folder: Path) -> list[str]:
    """Return the files of a run's folder, but not those for sums that the server adds: it makes as many as it needs."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("partial-sums"))


@pytest.mark.parametrize("part", ["", LONG], ids=["socket", "no socket"])
def test_the_memory_of_a_worker_that_is_gone_is_given_back(short_root: Path, part: str) -> None:
    root = short_root / part
    root.mkdir(exist_ok=True)
    with simulated(root, workers=2) as simulation:
        first, second = simulation.add_worker(), simulation.add_worker()
        simulation.run_to(1)
        assert simulation.sharing is not None
        folder = simulation.sharing.folder.path
        has_socket = part == "" and sys.platform == "linux"
        kept = ["callers", "weights"] if has_socket else ["weights"]
        assert names_in(folder) == sorted([*kept, "sums-0", "sums-1"])
        first.die()
        simulation.run(until=lambda: any("left" in text for text in simulation.said))
        (left,) = simulation.server.coordinator.membership.members.values()
        assert names_in(folder) == sorted([*kept, f"sums-{left.rank}"])
        assert simulation.finish() == alone("linear").weights_sha256
        second.die()


@LINUX_ONLY
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_simulation_that_is_over_leaves_nothing_open(short_root: Path, is_killed: bool) -> None:
    with nothing_left_open(), simulated(short_root, workers=2) as simulation:
        for _ in range(2):
            simulation.add_worker()
        simulation.run_to(1)
        if is_killed:
            simulation.workers[0].die()
        simulation.finish()
        del simulation


def test_where_memory_is_needed_one_that_does_not_share_is_sent_away(short_root: Path) -> None:
    with simulated(short_root) as simulation:
        coordinator = simulation.server.coordinator
        coordinator.info = replace(coordinator.info, needs_memory=True)
        odd = simulation.add_worker(shares=False)
        simulation.run(until=lambda: odd.runner.ended is not None)
        assert odd.runner.ended is not None
        assert odd.runner.ended.code == 2
        simulation.add_worker()
        assert simulation.finish() == alone("linear").weights_sha256


def test_why_a_worker_does_not_share_is_in_the_result(short_root: Path) -> None:
    with simulated(short_root) as simulation:
        elsewhere = simulation.add_worker()
        elsewhere.runner.root = short_root / "elsewhere"
        assert simulation.finish() == alone("linear").weights_sha256
        result = simulation.recorder.result
        assert result is not None
        assert result.transport == "memory"
        assert "cannot be opened here: No such file or directory" in result.obstacle
        assert any(
            f"exchanges gradients and weights through its socket: {result.obstacle}" in text for text in simulation.said
        )
