"""The promise with the weights in several processes; shards that come late, are odd, die or hang."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.slices import slices_for
from lockstep.common.errors import FailureKind, JobError
from lockstep.common.files.safetensors import read
from lockstep.common.job.job import Job
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Refused, SumsFrame
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardJoin, ToShardMessage
from lockstep.common.statemachine.client import Exit
from lockstep.ps.coordinator.events import Event
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.run_folder import WEIGHTS
from lockstep.ps.setup import open_run
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard_group.distributed_update import DistributedUpdate
from lockstep.ps.shard_group.group import SliceGroup
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.oracle import RunRecords, reference_run
from tests.simulation.small import digits, job_of

#: A net whose running statistics are longer than a block, so that slices begin among them too.
STATISTICS = {
    "class": "Sequential",
    "args": [
        {"class": "Flatten"},
        {"class": "BatchNorm1d", "args": [784]},
        {"class": "Linear", "args": [784, 10]},
        {"class": "BatchNorm1d", "args": [10]},
    ],
}

#: Of five frames and more: clipped, or not; slots of the optimizer, and statistics at the borders of slices.
SHARDED = {
    "clipped": job_of(model="mlp", steps=2, global_batch=16, micro_batches=8, momentum=0.9, clip_norm=1.0),
    "plain": job_of(model="mlp", steps=3, optimizer="adam", lr=0.001),
    "statistics": job_of(model=STATISTICS, steps=4, global_batch=18, micro_batches=6, clip_norm=0.5, momentum=0.9),
    "rounded": job_of(
        model=STATISTICS, steps=4, global_batch=18, micro_batches=6, clip_norm=0.5, wire="int8", wire_weights="bfloat16"
    ),
    "small": job_of(model="linear", global_batch=19, micro_batches=5, steps=7, schedule="cosine", warmup_steps=2),
}

#: Seconds after which a lease runs out, and a shard that is silent counts as gone.
TIMEOUT_S = 5.0


@cache
def alone(name: str) -> RunRecords:
    """Return the run of one process without any transport: the oracle."""
    return reference_run(SHARDED[name], digits())


def most(job: Job) -> int:
    """Return the number of servers that leaves each of them one block."""
    return -(-open_run("size", job, digits(), RunOptions()).layout.size // BLOCK)


@contextmanager
def simulated(
    name: str,
    servers: int,
    *,
    workers: int = 1,
    root: Path | None = None,
    timeout_s: float = 60.0,
) -> Iterator[Simulation]:
    """A run with so many servers; `root` is where memory is shared."""
    options = RunOptions(min_workers=workers, servers=servers, lease_timeout=timeout_s)
    with Simulation(SHARDED[name], servers, options, root=root) as simulation:
        yield simulation


@pytest.mark.parametrize(
    ("name", "servers", "workers"),
    [
        *(("clipped", 2, 3), ("clipped", 5, 1), ("plain", 3, 1), ("plain", 5, 3)),
        *(("statistics", 2, 1), ("statistics", 3, 3), ("rounded", 2, 3), ("rounded", 3, 1)),
        *((name, 0, 2) for name in ("statistics", "rounded", "small")),
    ],
)
@pytest.mark.parametrize("sharing", [0, 1, 3])
def test_any_number_of_servers_gives_the_bits_and_records_of_one_process(
    short_root: Path, name: str, servers: int, workers: int, sharing: int
) -> None:
    root = short_root if sharing else None
    with simulated(name, servers or most(SHARDED[name]), workers=workers, root=root) as simulation:
        for number in range(workers):
            simulation.add_worker(shares=number < sharing)
        simulation.prove(alone(name))


@pytest.mark.parametrize("name", SHARDED)
def test_more_servers_than_blocks_are_an_error_that_says_how_many_there_may_be(name: str) -> None:
    blocks = most(SHARDED[name])
    with pytest.raises(JobError, match=f"servers = {blocks + 1} for a model of .* expected 1 to {blocks}"):
        open_run("many", SHARDED[name], digits(), RunOptions(servers=blocks + 1))


def test_the_statistics_lie_across_slices() -> None:
    opening = open_run("cut", SHARDED["statistics"], digits(), RunOptions())
    slices = slices_for(opening.layout.size, most(SHARDED["statistics"]))
    assert any(it.start < opening.layout.parameter_size < it.stop for it in slices)


# Shards come, and go


def test_a_run_waits_for_its_shards_and_says_so() -> None:
    with simulated("plain", 3) as simulation:
        for shard in simulation.shards:
            shard.process.stop()
        simulation.network.clients[0].up.messages.clear()
        simulation.network.clients[1].up.messages.clear()
        simulation.add_worker()
        simulation.run(until=lambda: "waiting for shards: 0 of 2 are ready" in simulation.said)
        simulation.shards[0].process.resume()
        simulation.run(until=lambda: "waiting for shards: 1 of 2 are ready" in simulation.said)
        assert not simulation.server.coordinator.membership.members
        assert not any("waiting for workers" in text for text in simulation.said)
        simulation.shards[1].process.resume()
        simulation.prove(alone("plain"))
        assert [shard.runner.ended for shard in simulation.shards] == [Exit(code=0, reason="")] * 2


def test_a_shard_of_other_numerics_is_refused_with_both_named() -> None:
    with simulated("plain", 2) as simulation:
        simulation.shards[0].die()
        odd = simulation.network.client()
        numerics = msgspec.structs.replace(fingerprint(), kernels="Z80")
        join = ShardJoin(
            protocol=PROTOCOL_VERSION, incarnation="odd", host="host", pid=9, fingerprint=numerics, address="memory://9"
        )
        odd.send(encode(join))
        simulation.run_until_quiet()
        frames = odd.receive(0.0)
        assert frames is not None
        refused, _ = decode(frames, ToShardMessage)
        assert isinstance(refused, Refused)
        assert f"kernels {fingerprint().kernels!r} at the server, 'Z80' there" in refused.reason
        assert any(text.startswith("refused a shard: the numerics of host 'host' differ") for text in simulation.said)
        simulation.add_shard()
        simulation.add_worker()
        simulation.finish()


def test_one_shard_too_many_waits_until_the_run_is_over() -> None:
    with simulated("plain", 2) as simulation:
        simulation.run(until=lambda: simulation.server.coordinator.phase is RunPhase.AWAITING_WORKERS)
        more = simulation.add_shard()
        simulation.run(until=lambda: bool(simulation.server.group.shards.spares))
        simulation.add_worker()
        simulation.finish()
        simulation.run_until_quiet()
        assert more.runner.ended == Exit(code=0, reason="")


def test_a_shard_of_a_run_with_one_server_is_refused() -> None:
    simulation = Simulation(SHARDED["plain"])
    shard = simulation.add_shard()
    simulation.run(until=lambda: shard.runner.ended is not None)
    assert shard.runner.ended is not None
    assert shard.runner.ended.code == 2
    assert "this run has one server: start that with --servers 2 or more" in shard.runner.ended.reason


@pytest.mark.parametrize("phase", [RunPhase.AWAITING_WORKERS, RunPhase.TRAINING, RunPhase.UPDATING])
def test_a_shard_that_dies_fails_the_run_with_its_cause(phase: RunPhase) -> None:
    with simulated("clipped", 3) as simulation:
        worker = simulation.add_worker()
        if phase is RunPhase.AWAITING_WORKERS:
            worker.process.stop()
        simulation.run(until=lambda: simulation.server.coordinator.phase is phase)
        simulation.shards[1].die()
        simulation.run()
        ended = simulation.server.ended
        assert ended is not None
        index = next(one.index for one in simulation.server.group.shards.members.values() if one.join.pid == 1)
        assert ended.failure == (
            f"shard {index} (host host, pid 1) is gone, and its slice of the weights with it: its connection is gone"
        )
        worker.process.resume()
        simulation.run_until_quiet()
        # The run may go on from a checkpoint: a worker looks for it, and so do other shards.
        assert worker.runner.ended is None
        assert simulation.shards[0].runner.ended is None


def test_a_shard_that_hangs_fails_the_run_in_the_end() -> None:
    with simulated("plain", 2, timeout_s=TIMEOUT_S) as simulation:
        simulation.add_worker()
        simulation.run_to(1)
        simulation.shards[0].process.stop()
        simulation.run()
        assert simulation.server.ended is not None
        assert "its slice of the weights with it: it has been silent for" in simulation.server.ended.failure


def test_a_shard_whose_server_is_gone_ends() -> None:
    with simulated("plain", 2) as simulation:
        (shard,) = simulation.shards
        simulation.run(until=lambda: simulation.server.coordinator.phase is RunPhase.AWAITING_WORKERS)
        simulation.process.stop()
        while shard.runner.ended is None:
            assert simulation.turn()
        assert (shard.runner.ended.code, shard.runner.ended.kind) == (1, FailureKind.UNREACHABLE)
        assert shard.runner.ended.reason.startswith("the server at memory:// has been silent for 3")


def test_a_worker_that_sends_a_shard_for_ever_is_lost_and_the_run_goes_on() -> None:
    with simulated("clipped", 2, workers=2) as simulation:
        flooding, _ = simulation.add_worker(), simulation.add_worker()
        simulation.run_to(1)
        (shard,) = simulation.shards
        members = simulation.server.coordinator.membership.members.values()
        (rank,) = [member.rank for member in members if member.join.pid == 0]
        assert shard.runner.service is not None
        peer = shard.runner.service.workers[rank].peer
        (client,) = [it for it in simulation.network.clients if it.address == "memory://shard-0" and it.peer == peer]
        (frame, *_) = shard.runner.service.shard.frames
        part = encode(SumsFrame(step=7, lo=0, hi=8, start=frame.start), [np.zeros(len(frame), np.float32)])
        flooding.process.stop()
        client.up.messages.extend([(0.0, [memoryview(bytes(it)) for it in part]) for _ in range(200)])
        simulation.run(until=lambda: any("left: " in text for text in simulation.said))
        told = f"worker {rank} (host host, pid 0) left: shard 1 lost it: it sends more than its leases ask for"
        assert any(text.startswith(told) for text in simulation.said)
        simulation.prove(alone("clipped"))


class OfItsOwnSlice(DistributedUpdate):
    """Leaves the factor of clipping to each server."""

    def scale(self, own: Shard) -> float | None:
        return None


class Provincial(SliceGroup):
    """A planted mistake: each server clips by the norm of its own slice."""

    def _make_update(self) -> list[Event]:
        self.update.__class__ = OfItsOwnSlice
        return super()._make_update()


def test_clipping_by_the_norm_of_a_slice_is_found() -> None:
    with simulated("clipped", 2) as simulation:
        simulation.server.group.__class__ = Provincial
        simulation.add_worker()
        assert simulation.finish() != alone("clipped").result.weights_sha256


def test_what_an_interrupted_run_keeps_is_whole(tmp_path: Path) -> None:
    with Simulation(SHARDED["plain"], 1, RunOptions(servers=3), folder=tmp_path / "run") as simulation:
        simulation.add_worker()
        simulation.run_to(2)
        simulation.server.interrupt()
    arrays, metadata = read(tmp_path / "run" / WEIGHTS)
    # The shards cannot act meanwhile, and do not bring the weights of the last step in time.
    assert metadata["steps"] == "0"
    begun = Simulation(SHARDED["plain"])
    whole = begun.opening.layout.read(begun.server.shard.weights)
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in whole.items()
    }
