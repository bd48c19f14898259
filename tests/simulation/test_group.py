"""Shards that come late, are odd, die or hang; what a planted mistake changes; what is kept of the whole vector."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind
from lockstep.common.files.safetensors import read
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import SumsFrame
from lockstep.common.statemachine.client import Exit
from lockstep.ps.coordinator.events import SumsAcknowledged
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import EpochDone, StepDone, read_lines
from lockstep.ps.records.run_folder import LEDGER, WEIGHTS, RunFolder
from lockstep.ps.setup import AdmissionPolicy
from lockstep.ps.shard_group.group import GroupEffect, ShardGroup
from tests.simulation.cluster import Simulation
from tests.simulation.test_shards import SHARDED, TIMEOUT_S, alone, peer_at, simulated

# Shards come, and go


def test_a_run_waits_for_its_shards_and_says_so() -> None:
    with simulated("plain", 3) as simulation:
        for shard in simulation.shards:
            shard.is_hanging = True
        simulation.add_worker()
        simulation.run(until=lambda: "waiting for shards: 0 of 2 are ready" in simulation.said)
        simulation.shards[0].is_hanging = False
        simulation.run(until=lambda: "waiting for shards: 1 of 2 are ready" in simulation.said)
        assert not simulation.server.coordinator.membership.members
        assert not any("waiting for workers" in text for text in simulation.said)
        simulation.shards[1].is_hanging = False
        assert simulation.finish() == alone("plain").weights_sha256
        simulation.drain()
        assert [shard.server.ended for shard in simulation.shards] == [Exit(code=0, reason="")] * 2


def test_a_shard_of_other_numerics_is_refused_with_both_named_and_another_takes_its_place() -> None:
    with simulated("plain", 2) as simulation:
        (late,) = simulation.shards
        late.is_hanging = True
        # The first one's word is on its way already.
        simulation.network.clients[0].up.messages.clear()
        odd = simulation.add_shard(numerics=msgspec.structs.replace(fingerprint(), kernel="Z80"))
        simulation.run(until=lambda: odd.server.ended is not None)
        assert odd.server.ended is not None
        assert odd.server.ended.code == 2
        kernel = fingerprint().kernel
        assert f"kernel {kernel!r} at the server, 'Z80' there" in odd.server.ended.reason
        assert any(text.startswith("refused a shard: the numerics of host 'host' differ") for text in simulation.said)
        simulation.add_shard()
        simulation.add_worker()
        assert simulation.finish() == alone("plain").weights_sha256


def test_one_shard_too_many_is_refused() -> None:
    with simulated("plain", 2) as simulation:
        simulation.run(until=lambda: simulation.server.coordinator.phase is RunPhase.AWAITING_WORKERS)
        more = simulation.add_shard()
        simulation.run(until=lambda: more.server.ended is not None)
        assert more.server.ended == Exit(
            code=2,
            reason="the server refused this shard: all 2 servers of this run are there: start the server with more "
            "--servers",
            kind=FailureKind.REFUSED,
        )
        simulation.add_worker()
        assert simulation.finish() == alone("plain").weights_sha256


def test_a_shard_of_a_run_with_one_server_is_refused() -> None:
    simulation = Simulation(SHARDED["plain"])
    shard = simulation.add_shard()
    simulation.run(until=lambda: shard.server.ended is not None)
    assert shard.server.ended is not None
    assert shard.server.ended.code == 2
    assert "this run has one server: start that with --servers 2 or more" in shard.server.ended.reason


@pytest.mark.parametrize("phase", [RunPhase.AWAITING_WORKERS, RunPhase.TRAINING, RunPhase.UPDATING])
def test_a_shard_that_dies_fails_the_run_with_its_cause(phase: RunPhase) -> None:
    with simulated("clipped", 3) as simulation:
        worker = simulation.add_worker()
        if phase is not RunPhase.AWAITING_WORKERS:
            simulation.run(until=lambda: simulation.server.coordinator.phase is phase)
        else:
            worker.is_hanging = True
            simulation.run(until=lambda: simulation.server.coordinator.phase is phase)
        simulation.shards[1].die()
        simulation.run()
        ended = simulation.server.ended
        assert ended is not None
        index = next(one.index for one in simulation.server.group.state.members.values() if one.join.pid == 1)
        assert ended.failure == (
            f"shard {index} (host host, pid 1) is gone, and its slice of the weights with it: its connection is gone"
        )
        worker.is_hanging = False
        simulation.drain()
        # The run may go on from a checkpoint: a worker looks for it.
        assert worker.runner.ended is None
        assert simulation.shards[0].server.ended == Exit(
            code=1, reason=f"the run failed: {ended.failure}", kind=FailureKind.SERVER_LOST
        )


def test_a_shard_that_hangs_fails_the_run_in_the_end() -> None:
    with simulated("plain", 2, timeout_s=TIMEOUT_S) as simulation:
        simulation.add_worker()
        simulation.run_to(1)
        simulation.shards[0].is_hanging = True
        simulation.run()
        assert simulation.server.ended is not None
        assert "its slice of the weights with it: it has been silent for" in simulation.server.ended.failure


def test_a_shard_whose_server_is_gone_ends() -> None:
    with simulated("plain", 2) as simulation:
        (shard,) = simulation.shards
        simulation.run(until=lambda: simulation.server.coordinator.phase is RunPhase.AWAITING_WORKERS)
        while shard.server.step():
            pass
        for _ in range(12):
            assert shard.server.ended is None
            simulation.clock.advance(5.0)
            shard.server.step()
        assert shard.server.ended is not None
        assert (shard.server.ended.code, shard.server.ended.kind) == (1, FailureKind.UNREACHABLE)
        assert shard.server.ended.reason.startswith("the server at memory:// has been silent for 6")


def test_a_worker_that_sends_a_shard_for_ever_is_lost_and_the_run_goes_on() -> None:
    with simulated("clipped", 2, workers=2) as simulation:
        flooding, _ = simulation.add_worker(), simulation.add_worker()
        simulation.run_to(1)
        (shard,) = simulation.shards
        members = simulation.server.coordinator.membership.members.values()
        (rank,) = [member.rank for member in members if member.join.pid == 0]
        (client,) = [client for client in shard.network.clients if client.peer == peer_at(simulation, rank)]
        assert shard.server.storage is not None
        (frame, *_) = shard.server.storage.shard.frames
        part = SumsFrame(step=7, lo=0, hi=8, start=frame.start)
        flooding.is_hanging = True
        client.up.messages.extend([(0.0, sent(part, len(frame))) for _ in range(200)])
        simulation.run(until=lambda: any("left: " in text for text in simulation.said))
        told = f"worker {rank} (host host, pid 0) left: shard 1 lost it: it sends more than its leases ask for"
        assert any(text.startswith(told) for text in simulation.said)
        assert simulation.finish() == alone("clipped").weights_sha256


def sent(part: SumsFrame, size: int) -> list[memoryview]:
    """Return the frames of a part whose sums would spoil the run."""
    return [memoryview(bytes(frame)) for frame in encode(part, [np.zeros(size, np.float32)])]


# What must not go unnoticed


@dataclass
class Hasty(ShardGroup):
    """A planted mistake: a result counts as soon as one shard has its sums."""

    def _confirm(self, key: tuple[int, Node]) -> list[GroupEffect]:
        if key not in self.awaited or not self.confirmed.get(key):
            return []
        self.awaited.remove(key)
        return [SumsAcknowledged(rank=key[0], node=key[1])]


def lagging(kind: type[ShardGroup]) -> str:
    """Finish a run in which one shard hears of nothing for a while, once the first step is on its way."""
    with simulated("plain", 3, workers=1) as simulation:
        simulation.server.group.state = kind(simulation.server.group.info)
        worker = simulation.add_worker()
        simulation.run(until=lambda: worker.runner.state.weights_step == 0)
        simulation.shards[1].is_hanging = True
        for _ in range(200):
            simulation.turn()
        simulation.shards[1].is_hanging = False
        return simulation.finish()


def test_a_step_waits_for_the_last_shard() -> None:
    assert lagging(ShardGroup) == alone("plain").weights_sha256


def test_an_update_before_all_shards_have_all_sums_is_found() -> None:
    # The one that lags is asked for an update that its sums do not suffice for: it ends, and the run with it.
    with pytest.raises(AssertionError, match="whose sums are not all there"):
        lagging(Hasty)


@dataclass
class Provincial(ShardGroup):
    """A planted mistake: each server clips by the norm of its own slice."""

    def _update(self, scale: float | None) -> list[GroupEffect]:
        return super()._update(None)


def test_clipping_by_the_norm_of_a_slice_is_found() -> None:
    with simulated("clipped", 2) as simulation:
        simulation.server.group.state = Provincial(simulation.server.group.info)
        simulation.add_worker()
        assert simulation.finish() != alone("clipped").weights_sha256


# What is kept of the whole


def lines_of(folder: Path) -> list[tuple[int, ...] | tuple[int, str]]:
    """Return what a ledger says of the weights: marks after steps, digests after epochs."""
    told: list[tuple[int, ...] | tuple[int, str]] = []
    for line in read_lines((folder / LEDGER).read_bytes(), "the ledger"):
        if isinstance(line, StepDone):
            told.append((line.step, line.checksum, *line.losses))
        elif isinstance(line, EpochDone):
            told.append((line.step, line.weights_sha256))
    return told


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_ledger_and_the_weights_are_those_of_one_server(tmp_path: Path, short_root: Path, is_shared: bool) -> None:
    folders = [tmp_path / "one", tmp_path / "three"]
    for folder, servers in zip(folders, (1, 3), strict=True):
        folder.mkdir()
        admission = AdmissionPolicy(servers=servers)
        root = short_root if is_shared else None
        with Simulation(SHARDED["plain"], 1, admission, folder=RunFolder(folder), root=root) as simulation:
            simulation.add_worker()
            simulation.finish()
    one, three = folders
    assert len(lines_of(one)) > 3
    assert lines_of(one) == lines_of(three)
    assert (one / WEIGHTS).read_bytes()[8:] == (three / WEIGHTS).read_bytes()[8:]


@pytest.mark.parametrize("is_shared", [False, True])
def test_what_an_interrupted_run_keeps_is_whole(tmp_path: Path, short_root: Path, is_shared: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    root, admission = short_root if is_shared else None, AdmissionPolicy(servers=3)
    with Simulation(SHARDED["plain"], 1, admission, folder=RunFolder(folder), root=root) as simulation:
        simulation.add_worker()
        simulation.run_to(2)
        simulation.server.interrupt()
    arrays, metadata = read(folder / WEIGHTS)
    # Where memory is shared it is at hand; otherwise the shards, which cannot act meanwhile, do not bring it in time.
    steps = 2 if is_shared else 0
    assert metadata["steps"] == str(steps)
    expected = Simulation(SHARDED["plain"])
    expected.add_worker()
    expected.run_to(steps)
    whole = expected.opening.layout.read(expected.server.shard.weights)
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in whole.items()
    }
