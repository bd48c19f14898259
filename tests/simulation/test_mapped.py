"""The same bits from memory, from a dataset folder, and from samples that were sent, for any number of workers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.mapped import MappedSamples
from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from tests.lockstep.common.data.folders import folder_of
from tests.simulation.cluster import Simulation
from tests.simulation.small import digits, job_of, noisy_net
from tests.simulation.test_other_data import job, normalised, table, train_alone
from tests.simulation.test_shipping import nothing

JOBS: dict[str, tuple[Job, Callable[[], TrainTest]]] = {
    "bytes": (job_of(model="mlp", steps=5), digits),
    "shifted, with a validation set": (
        job_of(model=noisy_net(), steps=5, global_batch=12, max_shift=2, validation_split=0.25),
        digits,
    ),
    "floats": (job(normalised(), loss="mse"), table),
    "floats, with a validation set": (job(normalised(), loss="mse", validation_split=0.2), table),
}


@cache
def from_memory(name: str) -> str:
    chosen, data = JOBS[name]
    return train_alone(chosen, data()).shard.digest()


def packed(name: str, folder: Path) -> Callable[[], TrainTest]:
    path = str(folder_of(JOBS[name][1](), folder))
    return lambda: load(path)


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("workers", [0, 3])
def test_a_folder_gives_the_bits_of_the_arrays_in_memory(name: str, workers: int, tmp_path: Path) -> None:
    chosen, data = JOBS[name][0], packed(name, tmp_path / "folder")
    assert isinstance(data().train.images, MappedSamples)
    if not workers:
        assert train_alone(chosen, data()).shard.digest() == from_memory(name)
        return
    simulation = Simulation(chosen, workers, RunOptions(min_workers=workers), data=data)
    for _ in range(workers):
        simulation.add_worker()
    assert simulation.finish() == from_memory(name)


@pytest.mark.parametrize("name", JOBS)
def test_samples_that_a_server_sends_from_a_folder_give_them_too(name: str, tmp_path: Path) -> None:
    shipping = RunOptions(ship_data=True, min_workers=2)
    simulation = Simulation(JOBS[name][0], 1, shipping, data=packed(name, tmp_path / "folder"))
    for number in range(2):
        simulation.add_worker(load=nothing, cache=tmp_path / str(number))
    assert simulation.finish() == from_memory(name)


def test_a_worker_whose_folder_holds_other_samples_is_sent_away(tmp_path: Path) -> None:
    simulation = Simulation(JOBS["bytes"][0], 1, data=packed("bytes", tmp_path / "folder"))
    worker = simulation.add_worker(load=lambda name: digits())
    while worker.runner.ended is None:
        simulation.turn()
    assert "is not the server's" in worker.runner.ended.reason
