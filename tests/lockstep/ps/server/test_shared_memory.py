"""The server's end of shared memory, with workers by hand: who is believed, what is shared for updates, and moves."""

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.errors import RemoteProtocolError, SharingError
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.team_memory import WEIGHTS, TeamShape, weights_shape
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.common.transport.shared_memory.segment import Allocate, reserve
from lockstep.ps.server.shared_memory import ServerSharedMemory, share
from lockstep.ps.setup import RunSetup, open_run
from lockstep.ps.shard.shard import Shard
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.simulation.small import digits, job_of

#: Values of a vector of the small job.
SIZE = 7850


def opened() -> RunSetup:
    return open_run("run", job_of(), digits(), RunOptions())


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[RunSetup, ServerSharedMemory]]:
    opening, sharing = share(opened(), tmp_path)
    yield opening, sharing
    sharing.close()


@dataclass(frozen=True)
class FakeWorker:
    """What a worker has mapped."""

    nonce: str
    slots: tuple[Vector, ...]


def joined(opening: RunSetup, root: Path) -> FakeWorker:
    with closing(SharedFolder.join(root, opening.info.memory)) as folder:
        weights = folder.attach(WEIGHTS, weights_shape(SIZE))
    return FakeWorker(weights.nonce.hex(), weights.vectors)


def team_of(processes: int) -> TeamShape:
    return TeamShape(processes=processes, micro_batches=4, size=SIZE, clips=False)


def names_in(sharing: ServerSharedMemory) -> set[str]:
    return {path.name for path in sharing.folder.path.iterdir()}


def refuse(code: int) -> Allocate:
    def allocate(descriptor: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    return allocate


def test_the_weights_that_a_run_begins_with_are_there(
    shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path
) -> None:
    opening, _ = shared
    assert opening.shard.digest() == opened().shard.digest()
    assert weights_digest(joined(opening, tmp_path).slots[0]) == opening.shard.digest()


def test_an_update_is_seen_in_the_other_slot(shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path) -> None:
    opening, _ = shared
    worker = joined(opening, tmp_path)
    before = worker.slots[0].copy()
    opening.shard.slots[1][:] = 5.0
    assert set(worker.slots[1].tolist()) == {5.0}
    assert np.array_equal(worker.slots[0], before)


def test_the_nonce_is_not_in_the_welcome(shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path) -> None:
    opening, _ = shared
    assert joined(opening, tmp_path).nonce not in repr(opening.info.welcome(0))


@pytest.mark.parametrize("nonce", ["", "0" * 32])
def test_who_has_not_read_the_nonce_is_not_believed(
    shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path, nonce: str
) -> None:
    opening, sharing = shared
    joined(opening, tmp_path)
    with pytest.raises(RemoteProtocolError, match="is not that of the shared memory"):
        sharing.admit(0, nonce)


def test_nothing_is_left_at_the_end_and_the_weights_can_still_be_read(tmp_path: Path) -> None:
    opening, sharing = share(opened(), tmp_path)
    worker = joined(opening, tmp_path)
    sharing.admit(0, worker.nonce)
    sharing.close()
    assert list(tmp_path.iterdir()) == []
    assert opening.shard.digest() == opened().shard.digest()
    assert weights_digest(worker.slots[0]) == opening.shard.digest()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EOPNOTSUPP])
def test_no_room_for_the_weights_leaves_nothing(tmp_path: Path, code: int) -> None:
    with pytest.raises(SharingError):
        share(opened(), tmp_path, refuse(code))
    assert list(tmp_path.iterdir()) == []


@LINUX_ONLY
def test_a_server_and_workers_that_come_and_go_leave_nothing_open(short_root: Path) -> None:
    with nothing_left_open():
        opening, sharing = share(opened(), short_root)
        for rank in range(3):
            nonce = joined(opening, short_root).nonce
            sharing.admit(rank, nonce)
        sharing.forget(0)
        sharing.admit(1, sharing.folder.nonce.hex(), team_of(2))
        assert sharing.share_update(opening.shard, 1)
        assert sharing.move(opening.shard)
        sharing.close()
        del opening, sharing
    assert list(short_root.iterdir()) == []


@LINUX_ONLY
def test_memory_that_is_refused_leaves_nothing_open(tmp_path: Path) -> None:
    with nothing_left_open(), pytest.raises(SharingError):
        share(opened(), tmp_path, refuse(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def bits_of(shard: Shard) -> list[bytes]:
    return [shard.weights.tobytes(), shard.served_weights.tobytes(), *(slot.tobytes() for slot in shard.state.values())]


def updated(wire_weights: str) -> RunSetup:
    """Return a run whose weights and slots are no longer those of its start."""
    opening = open_run("run", job_of(momentum=0.9, wire_weights=wire_weights), digits(), RunOptions())
    opening.shard.add(Node(0, opening.info.job.micro_batches), np.linspace(-1, 1, SIZE, dtype=np.float32))
    opening.shard.update(0, 3)
    return opening


def admitted(opening: RunSetup, sharing: ServerSharedMemory, root: Path, rank: int = 0, processes: int = 1) -> None:
    sharing.admit(rank, joined(opening, root).nonce, team_of(processes))


@pytest.mark.parametrize("wire_weights", ["float32", "bfloat16"])
def test_a_run_goes_on_in_other_memory_which_new_workers_find(tmp_path: Path, wire_weights: str) -> None:
    opening, sharing = share(updated(wire_weights), tmp_path)
    shard = opening.shard
    shard.add(Node(0, opening.info.job.micro_batches), np.ones(SIZE, np.float32))
    shard.update(0, 3)
    admitted(opening, sharing, tmp_path)
    before, marks = bits_of(shard), sharing.share_update(shard, 0)
    old = joined(opening, tmp_path).slots
    assert bits_of(shard) == before
    exact = set() if wire_weights == "float32" else {"exact-weights"}
    names = {"weights", "state", "lock-0", *exact}
    assert names_in(sharing) == {*names, "update-0"}
    assert sharing.move(shard)
    assert (sharing.generation, bits_of(shard)) == (1, before)
    assert names_in(sharing) == names
    shard.served_weights[:] = 7.0
    assert 7.0 not in old[1]
    assert set(joined(opening, tmp_path).slots[1].tolist()) == {7.0}
    newer = sharing.share_update(shard, 0)
    assert newer is not None
    assert newer is not marks
    sharing.close()


def test_the_locks_of_memory_that_is_left_are_free_and_those_of_the_new_one_are_others(tmp_path: Path) -> None:
    opening, sharing = share(opened(), tmp_path)
    admitted(opening, sharing, tmp_path)
    sharing.share_update(opening.shard, 0)
    (ours,) = sharing.locks
    with closing(sharing.folder.lock_of("lock-0")) as theirs:
        assert (ours.acquire(), theirs.acquire()) == (True, False)
        sharing.move(opening.shard)
        (new,) = sharing.locks
        assert (theirs.acquire(), new.acquire()) == (True, True)
    with closing(sharing.folder.lock_of("lock-0")) as later:
        assert not later.acquire()
    sharing.close()


def test_a_team_of_more_processes_has_more_locks_and_marks_of_its_own(tmp_path: Path) -> None:
    opening = open_run("run", job_of(model="mlp"), digits(), RunOptions())
    size = opening.layout.size
    opening, sharing = share(opening, tmp_path)
    for rank, processes in ((0, 1), (1, 4)):
        team = TeamShape(processes=processes, micro_batches=4, size=size, clips=True)
        sharing.admit(rank, sharing.folder.nonce.hex(), team)
    first, second = (sharing.share_update(opening.shard, rank) for rank in (0, 1))
    assert len(sharing.locks) == 4
    assert first is not second
    assert sharing.share_update(opening.shard, 0) is first
    sharing.forget(1)
    assert "update-1" not in names_in(sharing)
    assert list(sharing.marks) == [0], "what is mapped of it takes memory until the run ends"
    assert sharing.share_update(opening.shard, 1) is None
    sharing.close()


def test_without_room_a_run_stays_where_it_is(tmp_path: Path) -> None:
    opening, sharing = share(opened(), tmp_path)
    shard, before = opening.shard, bits_of(opening.shard)
    admitted(opening, sharing, tmp_path)
    assert sharing.share_update(shard, 0)
    names = names_in(sharing)
    sharing.allocate = refuse(errno.ENOSPC)
    assert not sharing.move(shard)
    assert (sharing.generation, bits_of(shard)) == (0, before)
    assert names_in(sharing) == names
    sharing.close()


def test_without_room_for_its_slots_no_update_is_shared(tmp_path: Path) -> None:
    opening, sharing = share(opened(), tmp_path)
    admitted(opening, sharing, tmp_path)
    sharing.allocate = refuse(errno.ENOSPC)
    with pytest.raises(SharingError, match=r"no room|No space"):
        sharing.share_update(opening.shard, 0)
    assert names_in(sharing) == {"weights"}
    # One failure does not last for the whole run.
    sharing.allocate = reserve
    assert sharing.share_update(opening.shard, 0) is not None
    sharing.close()
