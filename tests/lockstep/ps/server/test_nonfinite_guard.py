"""What is not finite does not get on unnoticed: where no loss tells of it, the run ends with the weights before."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.aggregation.update import UpdateStep
from lockstep.common.errors import DivergedError, FailureKind
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.records.recorder import NO_TRANSPORT, MetricsRecorder, Setting
from lockstep.ps.records.run_folder import WEIGHTS
from lockstep.ps.shard.shard import Shard
from lockstep.runs.single_process import SerialRun
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.processes import Parts
from tests.simulation.small import JOBS

#: Running statistics are what training computes nothing from: no loss tells of them before the epoch is over.
JOB = JOBS["noisy"]


@dataclass
class Poisoned(Shard):
    """Gets sums over one micro-batch of the second step in which the last value, of a statistic, is not finite."""

    value: float = np.nan

    def receive(self, frame: int, node: Node, words: Vector) -> None:
        super().receive(frame, node, self._poisoned(node, words))

    def add(self, node: Node, sums: Vector) -> None:
        super().add(node, self._poisoned(node, sums))

    def update_by(self, sums: Vector, step: int, divisor: float) -> UpdateStep:
        return super().update_by(self._poisoned(Node(0, self.micro_batches), sums), step, divisor)

    def _poisoned(self, node: Node, sums: Vector) -> Vector:
        if self.updates != 1 or not node.lo <= 2 < node.hi:
            return sums
        poisoned = sums.copy()
        poisoned[-1] = self.value
        return poisoned


def simulation_of(value: float, folder: Path) -> Simulation:
    return Simulation(
        JOB,
        options=RunOptions(min_workers=2),
        parts=Parts(shard=lambda it: Poisoned(it.slots, it.policy, it.micro_batches, value=value)),
        folder=folder,
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_run_ends_and_says_whose_sums_they_were(value: float, tmp_path: Path) -> None:
    simulation = simulation_of(value, tmp_path)
    simulation.add_worker()
    simulation.add_worker()
    simulation.run()
    assert isinstance(simulation.server.ended, Finish)
    failure = simulation.server.ended.failure
    assert "the weights, first of '6.running_var', after step 1 are not finite, although every loss was" in failure
    assert re.search(r"micro-batches [0-9-]+ by worker [01] \(host host, pid [01]\)", failure)
    assert "`lockstep replay RUN --step 1 --micro-batch M`" in failure
    assert simulation.server.ended.kind is FailureKind.DIVERGED


def test_the_weights_that_are_kept_are_those_before(tmp_path: Path) -> None:
    simulation = simulation_of(np.nan, tmp_path)
    simulation.add_worker()
    simulation.add_worker()
    simulation.run_to(1)
    before = simulation.server.shard.weights.copy()
    simulation.run()
    kept, updates = simulation.server.shard.kept_weights(is_diverged=True)
    assert updates == 1
    assert kept.tobytes() == before.tobytes()
    assert (tmp_path / WEIGHTS).exists()


def test_a_process_alone_says_it_too(tmp_path: Path) -> None:
    simulation = simulation_of(np.nan, tmp_path)
    opening = simulation.opening
    recorder = MetricsRecorder(opening.info, Setting(transport=NO_TRANSPORT, started=0.0), opening.layout, None)
    recorder.begin(opening.shard.digest())
    with pytest.raises(DivergedError, match="after step 1 are not finite, although every loss was"):
        SerialRun(opening, recorder, ManualClock(), lambda status: None).train()
