"""Workers that lack the data come to the same bits, with the samples of their leases and no others."""

import errno
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.data.dataset import TrainTest
from lockstep.common.errors import DataError, Diagnosis
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import decode
from lockstep.common.protocol.messages import Lease, Samples, SamplesRequest, ServerMessage, WorkerMessage
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.transport.port import ClientPort, Frames
from lockstep.worker.samples import PARTS
from lockstep.worker.shell import WorkerShell
from tests.simulation.cluster import Member, Simulation
from tests.simulation.simulator.oracle import RunRecords, reference_run
from tests.simulation.small import digits, job_of, noisy_net, other_digits

SHIPPING = RunOptions(ship_data=True)

#: Epochs of three steps, with dropout and shifts; the second with a validation set.
JOBS = {
    "plain": job_of(model="mlp", steps=5),
    "noisy": job_of(model=noisy_net(), steps=5, global_batch=12, max_shift=2, validation_split=0.25),
}


@cache
def expected(name: str) -> RunRecords:
    return reference_run(JOBS[name], digits())


def nothing(name: str) -> TrainTest:
    raise DataError(f"no dataset {name!r}")


def run(job: Job, cache_dir: Path, workers: int = 1, seed: int = 1) -> Simulation:
    simulation = Simulation(job, seed, RunOptions(ship_data=True, min_workers=workers))
    for number in range(workers):
        simulation.add_worker(load=nothing, cache=cache_dir / str(number))
    return simulation


def here(worker: Member[WorkerShell]) -> int:
    """Return how many training samples a worker has."""
    assert worker.runner.session is not None
    store = worker.runner.session.loaded.store
    assert store is not None
    part = store.parts["train"]
    return part.info.samples - len(part.missing(np.arange(part.info.samples)))


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_without_data_come_to_the_same_bits(name: str, workers: int, tmp_path: Path) -> None:
    run(JOBS[name], tmp_path, workers).prove(expected(name))


def test_a_worker_with_other_data_is_sent_the_servers(tmp_path: Path) -> None:
    simulation = Simulation(JOBS["plain"], 1, SHIPPING)
    simulation.add_worker(load=lambda name: other_digits(), cache=tmp_path)
    simulation.prove(expected("plain"))


def test_a_worker_with_the_data_asks_for_nothing(tmp_path: Path) -> None:
    simulation = Simulation(JOBS["plain"], 1, SHIPPING)
    worker = simulation.add_worker(cache=tmp_path)
    simulation.prove(expected("plain"))
    assert worker.runner.session is not None
    assert worker.runner.session.loaded.store is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", JOBS)
def test_only_the_samples_of_its_leases_are_sent(name: str, tmp_path: Path) -> None:
    simulation = run(JOBS[name], tmp_path, workers=2)
    ports = [count(worker) for worker in simulation.workers]
    simulation.prove(expected(name))
    for worker, port in zip(simulation.workers, ports, strict=True):
        assert worker.runner.session is not None
        compute = worker.runner.session.setup.compute
        leased = {
            (PARTS[lease.work], int(place))
            for lease in port.leases
            for place in compute.batches.samples_of(lease.work, lease.step, Node(lease.lo, lease.hi))
        }
        assert port.places
        assert set(port.places) <= leased
        assert len(port.places) == len(set(port.places))


def test_a_worker_that_computes_half_of_a_step_has_half_of_its_samples(tmp_path: Path) -> None:
    simulation = run(JOBS["plain"], tmp_path, workers=2)
    simulation.run_to(1)
    # One step of 16 of the 40 samples; the next leases may be under way.
    assert all(0 < here(worker) <= 16 for worker in simulation.workers)


class Counting:
    """A connection that counts what is leased and asked for, and loses the first answers."""

    def __init__(self, client: ClientPort, lost: int = 0) -> None:
        self.client, self.lost, self.asked = client, lost, 0
        self.leases: list[Lease] = []
        #: Each set and place that was asked for.
        self.places: list[tuple[str, int]] = []

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        frames = self.client.receive(timeout_s)
        message = None if frames is None else decode(frames, ServerMessage)[0]
        if isinstance(message, Lease):
            self.leases.append(message)
        if self.lost and isinstance(message, Samples):
            self.lost -= 1
            return self.client.receive(timeout_s)
        return frames

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        message = decode(frames, WorkerMessage)[0]
        if isinstance(message, SamplesRequest):
            self.asked += 1
            self.places += [(message.part, int(place)) for place in np.frombuffer(message.places, "<u4")]
        self.client.send(frames)

    def diagnosis(self) -> Diagnosis | None:
        return self.client.diagnosis()

    def close(self, linger_s: float = 0.0) -> None:
        self.client.close(linger_s)


def count(worker: Member[WorkerShell], lost: int = 0) -> Counting:
    """Count from now on what a worker hears and says."""
    port = Counting(worker.runner.servers.first, lost)
    worker.runner.servers.first = port
    return port


def counted(job: Job, cache_dir: Path, lost: int = 0) -> tuple[str, Counting]:
    simulation = Simulation(job, 1, SHIPPING)
    port = count(simulation.add_worker(load=nothing, cache=cache_dir), lost)
    return simulation.finish(), port


def test_what_was_sent_once_is_not_asked_for_again(tmp_path: Path) -> None:
    first, second = (counted(JOBS["plain"], tmp_path) for _ in range(2))
    assert first[0] == second[0] == expected("plain").result.weights_sha256
    assert first[1].asked > 3
    assert second[1].asked == 0


def test_an_answer_that_is_lost_is_asked_for_again(tmp_path: Path) -> None:
    digest, port = counted(JOBS["plain"], tmp_path, lost=3)
    assert digest == expected("plain").result.weights_sha256
    assert port.lost == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_worker_whose_disk_is_full_says_so_and_costs_the_run_nothing(tmp_path: Path) -> None:
    simulation = run(JOBS["plain"], tmp_path, workers=2)
    simulation.run(until=lambda: all(worker.runner.session is not None for worker in simulation.workers))
    (images,) = (tmp_path / "0").glob("*/train.images")
    images.unlink()
    images.symlink_to("/dev/full")
    assert simulation.finish() == expected("plain").result.weights_sha256
    simulation.run_until_quiet()
    ended = simulation.workers[0].runner.ended
    assert ended is not None
    assert ended.code == 1
    assert f"{os.strerror(errno.ENOSPC)}: make room, or give another folder with XDG_CACHE_HOME" in ended.reason


def test_a_server_that_sends_no_samples_names_the_way_out(tmp_path: Path) -> None:
    simulation = Simulation(JOBS["plain"], 1)
    worker = simulation.add_worker(load=lambda name: other_digits(), cache=tmp_path)
    simulation.run(until=lambda: worker.runner.ended is not None)
    assert worker.runner.ended is not None
    assert worker.runner.ended.code == 2
    assert "start the server with --set ship_data=true" in worker.runner.ended.reason
