"""Workers that share the server's memory: what is left of it, and what is said if one does not share."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from lockstep.common.protocol.run_options import RunOptions
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.simulation.cluster import Simulation
from tests.simulation.small import JOBS
from tests.simulation.test_promise import alone


@contextmanager
def simulated(root: Path, workers: int = 1) -> Iterator[Simulation]:
    """A run that offers memory; at its end nothing is left of that."""
    options = RunOptions(min_workers=workers)
    with Simulation(JOBS["linear"], 0, options, root=root) as simulation:
        yield simulation
    assert list(root.iterdir()) == []


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
        admission = simulation.server.coordinator.admission
        admission.info = replace(admission.info, needs_memory=True)
        odd = simulation.add_worker(shares=False)
        simulation.run(until=lambda: odd.runner.ended is not None)
        assert odd.runner.ended is not None
        assert odd.runner.ended.code == 2
        simulation.add_worker()
        assert simulation.finish() == alone("linear").result.weights_sha256


def test_why_a_worker_does_not_share_is_in_the_result(short_root: Path) -> None:
    with simulated(short_root) as simulation:
        elsewhere = simulation.add_worker()
        elsewhere.runner.context = replace(elsewhere.runner.context, root=short_root / "elsewhere")
        simulation.prove(alone("linear"))
        result = simulation.result()
        assert result.transport == "memory"
        assert f"cannot be opened here: {os.strerror(errno.ENOENT)}" in result.obstacle
        assert any(
            f"exchanges gradients and weights through its socket: {result.obstacle}" in text for text in simulation.said
        )
