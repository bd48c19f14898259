"""How a run ends at the server: what is kept of a good one, a diverged one, and one interrupted at any moment."""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from lockstep.common.aggregation.layout import ParameterLayout, weights_digest
from lockstep.common.aggregation.update import UpdateStep
from lockstep.common.errors import FailureKind
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.receipt import Receipt
from lockstep.ps.records.run_folder import RESULT, WEIGHTS, RunFolder, RunResult
from lockstep.ps.server.server import Server
from lockstep.ps.shard.shard import Shard
from tests.lockstep.ps.server.test_server import digest_of
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.processes import Parts
from tests.simulation.small import job_of


def test_the_end_is_kept_in_the_folder(tmp_path: Path) -> None:
    simulation = Simulation(job_of(), folder=tmp_path)
    simulation.add_worker()
    digest = simulation.finish()
    assert digest_in(tmp_path, simulation.opening.layout) == digest
    result = json.loads((tmp_path / RESULT).read_text())
    assert (result["weights_sha256"], result["workers"], result["transport"]) == (digest, 1, "memory")
    assert all(json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines())


def digest_in(folder: Path, layout: ParameterLayout) -> str:
    vector = np.zeros(layout.size, np.float32)
    with safe_open(folder / WEIGHTS, "numpy") as file:
        layout.write(vector, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # not a mapping
    return weights_digest(vector)


@dataclass
class ExplodingShard(Shard):
    """From the third update on, weights whose loss is not finite."""

    def end_update(self, at: UpdateStep, not_finite: int | None) -> None:
        super().end_update(at, not_finite)
        if at.step == 2:
            self.weights[:] = np.inf


@dataclass
class InterruptedShard(Shard):
    """Ctrl-C in the middle of the third update: the weights are written, and not in use yet."""

    def end_update(self, at: UpdateStep, not_finite: int | None) -> None:
        if at.step == 2:
            raise KeyboardInterrupt
        super().end_update(at, not_finite)


def like(kind: type[Shard]) -> Parts:
    return Parts(shard=lambda it: kind(slots=it.slots, policy=it.policy, micro_batches=it.micro_batches))


def test_divergence_stops_the_run_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    simulation = Simulation(job_of(model="lenet"), folder=tmp_path, parts=like(ExplodingShard))
    worker = simulation.add_worker()
    simulation.run()
    simulation.run_until_quiet()
    ended = simulation.server.ended
    assert ended is not None
    assert ended.kind is FailureKind.DIVERGED
    # The third update ends the epoch, so that its evaluation is the first to see the weights.
    assert "the loss of step 3, evaluation chunk 0, is not finite; first seen in layer 0 (Conv2d)" in ended.failure
    assert worker.runner.ended is not None
    assert worker.runner.ended.code == 1
    assert ended.failure in worker.runner.ended.reason
    assert digest_in(tmp_path, simulation.opening.layout) == digest_after(2)
    assert not (tmp_path / RESULT).exists()
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[-1])["weights_after_steps"] == 2


def digest_after(steps: int) -> str:
    """Return the digest after so many steps of the job whose rate does not depend on their number."""
    return digest_of(job_of(model="lenet", steps=steps))


def test_an_interrupt_in_the_middle_of_an_update_keeps_whole_weights(tmp_path: Path) -> None:
    simulation = Simulation(job_of(model="lenet"), folder=tmp_path, parts=like(InterruptedShard))
    simulation.add_worker()
    with pytest.raises(KeyboardInterrupt):
        simulation.run()
    simulation.server.interrupt()
    assert simulation.server.ended == Finish(failure="interrupted", kind=FailureKind.INTERRUPTED)
    assert digest_in(tmp_path, simulation.opening.layout) == digest_after(2)


def test_an_interrupt_before_anybody_came_ends_the_run() -> None:
    simulation = Simulation(job_of())

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert simulation.server.run(watch=interrupt) == Finish(failure="interrupted", kind=FailureKind.INTERRUPTED)
    # Whoever has opened it may close it.
    assert simulation.server.outbox.port.address in simulation.network.servers


def test_an_interrupt_counts_more_than_a_lost_shard_for_which_the_server_would_resume() -> None:
    """As when a `train` is killed: its servers and its shards end at the same time."""
    simulation = Simulation(job_of(), options=RunOptions(min_workers=1, servers=2))
    simulation.add_worker()
    simulation.run_to(1)

    def lose_and_interrupt() -> None:
        simulation.shards[0].die()
        simulation.run()
        assert simulation.server.ended is not None
        assert simulation.server.ended.kind is FailureKind.SERVER_LOST
        raise KeyboardInterrupt

    assert simulation.server.run(watch=lose_and_interrupt) == Finish(
        failure="interrupted", kind=FailureKind.INTERRUPTED
    )


def test_no_worker_is_told_of_an_end_that_is_not_written(tmp_path: Path) -> None:
    simulation = Simulation(job_of(steps=1), folder=tmp_path / "run", parts=Parts(server=without_a_folder_at_its_end))
    worker = simulation.add_worker()
    while not simulation.process.is_dead:
        assert simulation.turn()
    simulation.run_until_quiet()
    assert worker.runner.ended is None


@dataclass
class DeletedFolder(RunFolder):
    """Is deleted before the result is written."""

    def keep_result(self, result: RunResult, receipt: Receipt) -> None:
        shutil.rmtree(self.path)
        super().keep_result(result, receipt)


def without_a_folder_at_its_end(server: Server) -> Server:
    assert server.recorder.folder is not None
    server.recorder.folder.__class__ = DeletedFolder
    return server


def test_a_server_that_cannot_write_lets_its_workers_know(tmp_path: Path) -> None:
    simulation = Simulation(job_of(), folder=tmp_path)
    worker = simulation.add_worker()
    simulation.run_to(1)

    def fail() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        simulation.server.run(watch=fail)
    while worker.runner.ended is None:
        worker.runner.step()
    reason = f"the run failed: the server cannot write to the run's folder: {os.strerror(errno.EROFS)}"
    assert (worker.runner.ended.code, worker.runner.ended.reason) == (1, reason)


@dataclass
class InterruptedFolder(RunFolder):
    """Ctrl-C while the result is written."""

    def keep_result(self, result: RunResult, receipt: Receipt) -> None:
        raise KeyboardInterrupt


def interrupted_at_its_result(server: Server) -> Server:
    assert server.recorder.folder is not None
    server.recorder.folder.__class__ = InterruptedFolder
    return server


def test_an_interrupt_while_the_result_is_kept_counts_as_one(tmp_path: Path) -> None:
    simulation = Simulation(job_of(steps=1), folder=tmp_path, parts=Parts(server=interrupted_at_its_result))
    worker = simulation.add_worker()
    with pytest.raises(KeyboardInterrupt):
        simulation.run()

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert simulation.server.run(watch=interrupt) == Finish(failure="interrupted", kind=FailureKind.INTERRUPTED)
    while worker.runner.ended is None:
        worker.runner.step()
    assert (worker.runner.ended.code, worker.runner.ended.reason) == (1, "the run failed: interrupted")


@dataclass
class FullDisk:
    """Has no room for lines that have this text, as long as it is full."""

    text: bytes
    is_full: bool = True

    def write(self, descriptor: int, data: bytes) -> int:
        if self.is_full and self.text in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data)


#: What the disk has no room for: the first line, and the last one of all, with which the run is over.
FULL_AT = {"the first step": b'"kind":"step"', "the last epoch": b'"epoch":2'}


@pytest.mark.parametrize("at", FULL_AT)
def test_on_a_full_disk_a_run_waits_and_goes_on_to_the_same_bits(tmp_path: Path, at: str) -> None:
    simulation = Simulation(job_of(), folder=tmp_path)
    simulation.add_worker()
    folder = simulation.server.recorder.folder
    assert folder is not None
    disk = FullDisk(FULL_AT[at])
    folder.metrics.write = disk.write
    simulation.wait(10)
    assert simulation.server.ended is None
    assert not (tmp_path / RESULT).exists()
    assert folder.room.is_lacking
    disk.is_full = False
    assert simulation.finish() == digest_of(job_of())
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [0, 1, 2, 3]
