"""A worker that cannot do its part: its error comes home to the server, or the run goes on without it."""

from pathlib import Path

import pytest

from lockstep.common.protocol.run_options import RunOptions
from tests.lockstep.worker.test_shell import RAISING, model_file
from tests.simulation.cluster import Simulation
from tests.simulation.small import job_of, other_digits


@pytest.mark.parametrize("workers", [1, 3])
def test_a_model_that_always_raises_stops_the_run_with_the_traceback(tmp_path: Path, workers: int) -> None:
    job = job_of(model=model_file(tmp_path / "net.py", RAISING))
    simulation = Simulation(job, options=RunOptions(min_workers=workers))
    for _ in range(workers):
        simulation.add_worker()
    simulation.run()
    simulation.run_until_quiet()
    ended = simulation.server.ended
    assert ended is not None
    assert "ValueError: odd" in ended.failure
    assert "raised, as it did before" in ended.failure
    assert [worker.runner.ended.code for worker in simulation.workers if worker.runner.ended] == [1] * workers


def test_a_worker_with_other_data_leaves_and_the_others_finish() -> None:
    simulation = Simulation(job_of())
    odd = simulation.add_worker(load=lambda name: other_digits())
    simulation.add_worker()
    simulation.finish()
    assert odd.runner.ended is not None
    assert odd.runner.ended.code == 2
    assert any("is not the server's" in text for text in simulation.said)
