"""Workers that share the server's memory: what is given back when, and what is said if one does not share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lockstep.ps.setup import AdmissionPolicy
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.simulation.cluster import Simulation
from tests.simulation.small import JOBS
from tests.simulation.test_promise import alone

#: Part of a path that leaves no room for the name of a socket in that folder.
LONG = "x" * 120


@contextmanager
def simulated(root: Path, workers: int = 1) -> Iterator[Simulation]:
    """A run that offers memory; at its end nothing is left of that."""
    with Simulation(JOBS["linear"], admission=AdmissionPolicy(min_workers=workers), root=root) as simulation:
        yield simulation
    assert list(root.iterdir()) == []


def names_in(folder: Path) -> list[str]:
    """Return the files of a run's folder, but not those for sums that the server adds: it makes as many as it needs."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("merged"))


@pytest.mark.parametrize("part", ["", LONG], ids=["socket", "no socket"])
def test_the_memory_of_a_worker_that_is_gone_is_given_back(short_root: Path, part: str) -> None:
    root = short_root / part
    root.mkdir(exist_ok=True)
    with simulated(root, workers=2) as simulation:
        first, _ = simulation.add_worker(), simulation.add_worker()
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
        assert "cannot be opened here: No such file or directory" in result.obstacle
        assert any(
            f"exchanges gradients and weights through its socket: {result.obstacle}" in text for text in simulation.said
        )
