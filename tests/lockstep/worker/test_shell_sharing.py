"""The worker's shell where memory is offered: it computes there, says why it does not, and takes no other's word."""

import errno
import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.protocol.messages import Lease, Leave, Message, Ready, Result, Weights
from lockstep.ps.server.shared_memory import ServerSharedMemory, share
from tests.lockstep.worker.test_shell import Bench
from tests.simulation.small import job_of


class SharingBench(Bench):
    """A worker that looks for memory in `there`, and a server that offers it in `root`."""

    def __init__(self, root: Path, there: Path) -> None:
        super().__init__(job_of(model="mlp"))
        self.opening, self.sharing = share(self.opening, root)
        self.runner.context = replace(self.runner.context, root=there, roots=(root,))

    def enter_here(self) -> ServerSharedMemory:
        """Let the worker join and share."""
        (ready,) = self.enter()
        assert isinstance(ready, Ready)
        assert (ready.obstacle, ready.makers) == ("", self.runner.context.patience.cores)
        self.sharing.admit(0, ready.nonce)
        return self.sharing


def test_the_weights_of_a_step_are_those_of_its_slot(tmp_path: Path) -> None:
    bench = SharingBench(tmp_path, tmp_path)
    sharing, (first, second) = bench.enter_here(), bench.opening.shard.slots
    second[:] = 0.5 * first
    losses: list[float] = []
    for step in (0, 1):
        (result,) = bench.send(Lease(work="evaluate", step=step, lo=0, hi=1))
        assert isinstance(result, Result)
        losses.append(result.loss_sum)
    assert losses[0] != losses[1]
    sharing.close()


def test_a_worker_that_shares_memory_with_all_servers_dials_none_of_them(tmp_path: Path) -> None:
    bench = SharingBench(tmp_path, tmp_path)
    (ready,) = bench.enter(msgspec.structs.replace(bench.welcome(), shards=["memory://shard"]))
    assert isinstance(ready, Ready)
    assert ready.obstacle == ""
    folder = bench.session.setup.folder
    assert folder is not None
    bench.runner.close()
    assert not folder.path.exists()
    bench.sharing.close()


def told(bench: SharingBench) -> Message:
    (ready,) = bench.enter()
    bench.sharing.close()
    return ready


def test_memory_that_is_not_here_is_told_and_frames_are_taken(tmp_path: Path) -> None:
    bench = SharingBench(tmp_path, tmp_path / "elsewhere")
    ready = told(bench)
    assert isinstance(ready, Ready)
    assert ready.nonce == ""
    assert f"cannot be opened here: {os.strerror(errno.ENOENT)}" in ready.obstacle
    for frame in bench.opening.shard.frames:
        assert bench.send(Weights(step=0, start=frame.start), frame.of(bench.opening.shard.weights)) == []
    *parts, result = bench.send(Lease(work="train", step=0, lo=0, hi=1))
    assert (len(parts) + 1, type(result)) == (len(bench.opening.shard.frames), Result)


def test_where_nothing_is_offered_nothing_is_told(tmp_path: Path) -> None:
    bench = SharingBench(tmp_path, tmp_path)
    bench.opening = replace(bench.opening, info=replace(bench.opening.info, memory=""))
    assert told(bench) == Ready(rank=0, part=bench.opening.info.part)


@pytest.mark.parametrize("name", ["../../etc", "/dev/shm", "x" * 200])
def test_a_name_that_leads_elsewhere_is_not_followed(tmp_path: Path, name: str) -> None:
    bench = SharingBench(tmp_path, tmp_path)
    (ready,) = bench.enter(msgspec.structs.replace(bench.welcome(), memory=name))
    assert isinstance(ready, Ready)
    assert "is not the name of a shared folder" in ready.obstacle
    bench.sharing.close()


def test_weights_that_are_sent_all_the_same_are_a_breach_of_the_protocol(tmp_path: Path) -> None:
    bench = SharingBench(tmp_path, tmp_path)
    bench.enter()
    frame = bench.opening.shard.frames[0]
    (leave,) = bench.send(Weights(step=0, start=0), frame.of(bench.opening.shard.weights))
    assert isinstance(leave, Leave)
    assert bench.end()[1].startswith("the server broke the protocol: weights ")
    bench.sharing.close()
