"""Workers that lack the data come to the same bits, with the samples of their leases and no others."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from common.codec import decode
from common.data.dataset import TrainTest
from common.errors import DataError
from common.job import Job
from common.messages import Samples, SamplesAsked, ServerMessage, WorkerMessage
from common.transport.memory import MemoryClient
from common.transport.port import Frames
from ps.opening import Admission
from tests.simulation.network import Simulation, Worker, digest_with
from tests.simulation.small import job_of, noisy_net, other_digits

SHIPPING = Admission(ships_data=True)

#: Epochs of three steps, with dropout and shifts; the second with a validation set.
JOBS = {
    "plain": job_of(model="mlp", steps=5),
    "noisy": job_of(model=noisy_net(), steps=5, global_batch=12, max_shift=2, validation_split=0.25),
}


@cache
def expected(name: str) -> str:
    return digest_with(JOBS[name], 1, seed=1)


def nothing(name: str) -> TrainTest:
    raise DataError(f"no dataset {name!r}")


def run(job: Job, cache_dir: Path, workers: int = 1, seed: int = 1) -> Simulation:
    simulation = Simulation(job, seed, Admission(ships_data=True, min_workers=workers))
    for number in range(workers):
        simulation.add_worker(load=nothing, cache=cache_dir / str(number))
    return simulation


def here(worker: Worker) -> int:
    """Return how many training samples a worker has."""
    supply = worker.runner._supply
    assert supply is not None
    part = supply.store.parts["train"]
    return part.facts.samples - len(part.missing(np.arange(part.facts.samples)))


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_without_data_come_to_the_same_bits(name: str, workers: int, tmp_path: Path) -> None:
    assert run(JOBS[name], tmp_path, workers).finish() == expected(name)


def test_a_worker_with_other_data_is_sent_the_servers(tmp_path: Path) -> None:
    simulation = Simulation(JOBS["plain"], 1, SHIPPING)
    simulation.add_worker(load=lambda name: other_digits(), cache=tmp_path)
    assert simulation.finish() == expected("plain")


def test_a_worker_with_the_data_asks_for_nothing(tmp_path: Path) -> None:
    simulation = Simulation(JOBS["plain"], 1, SHIPPING)
    worker = simulation.add_worker(cache=tmp_path)
    assert simulation.finish() == expected("plain")
    assert worker.runner._supply is None
    assert list(tmp_path.iterdir()) == []


def test_only_the_samples_of_its_leases_are_sent(tmp_path: Path) -> None:
    simulation = run(JOBS["plain"], tmp_path, workers=2)
    simulation.run_to(1)
    # One step of 16 of the 40 samples, half of it each; the next leases may be under way.
    assert all(0 < here(worker) <= 16 for worker in simulation.workers)


class Counting:
    """A connection that counts what is asked for, and loses the first answers, or hears them twice."""

    def __init__(self, client: MemoryClient, lost: int = 0) -> None:
        self.client, self.lost, self.asked = client, lost, 0

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        frames = self.client.receive(timeout_s)
        if frames is not None and self.lost and isinstance(decode(frames, ServerMessage)[0], Samples):
            self.lost -= 1
            return self.client.receive(timeout_s)
        return frames

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self.asked += isinstance(decode(frames, WorkerMessage)[0], SamplesAsked)
        self.client.send(frames)

    def close(self, linger_s: float = 0.0) -> None:
        self.client.close(linger_s)


def counted(job: Job, cache_dir: Path, lost: int = 0) -> tuple[str, Counting]:
    simulation = Simulation(job, 1, SHIPPING)
    worker = simulation.add_worker(load=nothing, cache=cache_dir)
    inner = worker.runner.port
    assert hasattr(inner, "client")
    port = Counting(inner.client, lost)
    worker.runner.port = port
    return simulation.finish(), port


def test_what_was_sent_once_is_not_asked_for_again(tmp_path: Path) -> None:
    first, second = (counted(JOBS["plain"], tmp_path) for _ in range(2))
    assert first[0] == second[0] == expected("plain")
    assert first[1].asked > 3
    assert second[1].asked == 0


def test_an_answer_that_is_lost_is_asked_for_again(tmp_path: Path) -> None:
    digest, port = counted(JOBS["plain"], tmp_path, lost=3)
    assert digest == expected("plain")
    assert port.lost == 0


def test_a_server_that_sends_no_samples_names_the_way_out(tmp_path: Path) -> None:
    simulation = Simulation(JOBS["plain"], 1)
    worker = simulation.add_worker(load=lambda name: other_digits(), cache=tmp_path)
    while worker.runner.ended is None:
        simulation.turn()
    assert worker.runner.ended.code == 2
    assert "start the server with --ship-data" in worker.runner.ended.reason
