"""Workers that share the server's memory: what is given back when, and what is said if one does not share."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from lockstep.checking.simulation.processes import Parts
from lockstep.common.aggregation.tree import Vector
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.shard.shard import Shard
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.lockstep.checking.simulation.planted import coordinating
from tests.lockstep.ps.careless import CarelessCoordinator
from tests.simulation.cluster import Simulation
from tests.simulation.small import JOBS
from tests.simulation.test_promise import alone


@contextmanager
def simulated(
    root: Path, workers: int = 1, name: str = "linear", seed: int = 0, parts: Parts | None = None
) -> Iterator[Simulation]:
    """A run that offers memory; at its end nothing is left of that."""
    options = RunOptions(min_workers=workers)
    with Simulation(JOBS[name], seed, options, root=root, parts=parts or Parts()) as simulation:
        yield simulation
    assert list(root.iterdir()) == []


def late(simulation: Simulation) -> str:
    """Let a worker answer a lease that has ended, after it has written another one's sums into the same slot."""
    late, other = simulation.add_worker(), simulation.add_worker()
    simulation.run(until=lambda: len(simulation.server.coordinator.leases.held) == 2)
    # Both hear what they are to do, and neither does it.
    for worker in (late, other):
        while len(worker.runner.state.leases) < 2:
            worker.runner.step()
        worker.process.stop()
    simulation.run(until=lambda: sum("leased again" in text for text in simulation.said) == 2)
    # Its first answer makes it one that gets work again.
    while len(late.runner.state.leases) == 2:
        late.runner.step()
    simulation.run_until_quiet()
    # What is left of its old leases, and both new ones, before the server hears of any.
    while late.runner.step() and late.runner.state.leases:
        pass
    late.process.resume()
    return simulation.finish()


def test_a_late_worker_that_writes_into_a_slot_again_tears_nothing(short_root: Path) -> None:
    with simulated(short_root, workers=2) as simulation:
        assert late(simulation) == alone("linear").result.weights_sha256


def test_reading_the_slot_of_a_lease_that_has_ended_is_found(short_root: Path) -> None:
    careless = Parts(coordinator=coordinating(CarelessCoordinator))
    with simulated(short_root, workers=2, parts=careless) as simulation:
        assert late(simulation) != alone("linear").result.weights_sha256


class Forgetful(Shard):
    """A planted bug: leaves sums where a worker will write others."""

    def settle(self, memory: Vector) -> None:
        pass


def test_leaving_sums_where_others_will_be_written_is_found(short_root: Path) -> None:
    """A slot is written again within a step only if nobody is known yet: so it takes some of all orders to show."""
    forgetful = Parts(shard=lambda it: Forgetful(it.slots, it.policy, it.micro_batches))
    found = set()
    for seed in range(4):
        with simulated(short_root, 2, "noisy", seed, forgetful) as simulation:
            for _ in range(2):
                simulation.add_worker()
            found.add(simulation.finish())
    assert found != {alone("noisy").result.weights_sha256}


def names_in(folder: Path) -> list[str]:
    """Return the files of a run's folder."""
    return sorted(path.name for path in folder.iterdir())


def test_the_memory_of_a_worker_that_is_gone_is_given_back(short_root: Path) -> None:
    with simulated(short_root, workers=2) as simulation:
        first, _ = simulation.add_worker(), simulation.add_worker()
        simulation.run_to(1)
        assert simulation.sharing is not None
        folder = simulation.sharing.folder.path
        assert names_in(folder) == ["sums-0", "sums-1", "weights"]
        first.die()
        simulation.run(until=lambda: any("left" in text for text in simulation.said))
        (left,) = simulation.server.coordinator.membership.members.values()
        assert names_in(folder) == [f"sums-{left.rank}", "weights"]
        simulation.prove(alone("linear"))


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
        assert simulation.finish() == alone("linear").result.weights_sha256


def test_why_a_worker_does_not_share_is_in_the_result(short_root: Path) -> None:
    with simulated(short_root) as simulation:
        elsewhere = simulation.add_worker()
        elsewhere.runner.root = short_root / "elsewhere"
        simulation.prove(alone("linear"))
        result = simulation.result()
        assert result.transport == "memory"
        assert f"cannot be opened here: {os.strerror(errno.ENOENT)}" in result.obstacle
        assert any(
            f"exchanges gradients and weights through its socket: {result.obstacle}" in text for text in simulation.said
        )
