"""Both ends of shared memory: weights go one way and sums the other, and only whoever read the nonce is believed."""

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import RemoteProtocolError, SharingError
from lockstep.common.protocol.messages import SumsPlace
from lockstep.common.protocol.shared_files import CALLERS
from lockstep.common.transport.port import PeerGone
from lockstep.common.transport.shared_memory.segment import Allocate, reserve
from lockstep.ps.setup import AdmissionPolicy, RunSetup, open_run
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shared_memory.memory import ServerSharedMemory, share
from lockstep.worker.setup import attach
from lockstep.worker.slice_update import SharedPlace
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.simulation.small import digits, job_of

#: Values of a vector of the small job.
SIZE = 7850


def opened() -> RunSetup:
    return open_run("run", job_of(), digits(), AdmissionPolicy())


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[RunSetup, ServerSharedMemory]]:
    opening, sharing = share(opened(), tmp_path)
    yield opening, sharing
    sharing.close()


def joined(opening: RunSetup, root: Path, rank: int = 0) -> SharedPlace:
    worker = attach(root, opening.info.welcome(rank), SIZE)
    if worker.shortcut is not None:
        worker.shortcut.close()
    return worker


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


def test_sums_that_a_worker_writes_are_read_by_rank_and_slot(
    shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path
) -> None:
    opening, sharing = shared
    for rank in (0, 3):
        worker = joined(opening, tmp_path, rank)
        sharing.admit(rank, worker.nonce)
        for slot, sums in enumerate(worker.sums):
            sums[:] = 10 * rank + slot
    assert [[slot[-1] for slot in sharing.sums[rank]] for rank in (0, 3)] == [[0.0, 1.0], [30.0, 31.0]]


def test_neither_can_write_what_is_the_others(shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path) -> None:
    opening, sharing = shared
    worker = joined(opening, tmp_path)
    sharing.admit(0, worker.nonce)
    for vector in (*worker.slots, *sharing.sums[0]):
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 1.0


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
    assert not sharing.sums


def test_who_has_no_sums_is_not_believed(shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path) -> None:
    opening, sharing = shared
    nonce = joined(opening, tmp_path, rank=1).nonce
    with pytest.raises(RemoteProtocolError, match=r"sums that are not there: .*sums-0 cannot be opened"):
        sharing.admit(0, nonce)


def test_what_a_worker_had_is_given_back(shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path) -> None:
    opening, sharing = shared
    sharing.admit(0, joined(opening, tmp_path).nonce)
    sharing.forget(0)
    sharing.forget(0)
    assert not sharing.sums
    assert {path.name for path in sharing.folder.path.iterdir()} - {CALLERS} == {"weights"}


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no sockets that keep the bounds of packets")
def test_a_worker_has_the_shortcut_that_it_asked_for_unless_it_was_forgotten(short_root: Path) -> None:
    opening, sharing = share(opened(), short_root)
    first, second = (attach(short_root, opening.info.welcome(rank), SIZE).shortcut for rank in (0, 1))
    assert first is not None
    assert second is not None
    sharing.forget(1)
    assert sharing.take_shortcut(1) is None
    with pytest.raises(PeerGone):
        second.receive()
    mine = sharing.take_shortcut(0)
    assert mine is not None
    mine.send(b"a lease")
    assert first.receive() == b"a lease"
    sharing.close()
    for end in (first, second, mine):
        end.close()


def test_nothing_is_left_at_the_end_and_the_weights_can_still_be_read(tmp_path: Path) -> None:
    opening, sharing = share(opened(), tmp_path)
    worker = joined(opening, tmp_path)
    sharing.admit(0, worker.nonce)
    sharing.close()
    assert list(tmp_path.iterdir()) == []
    assert opening.shard.digest() == opened().shard.digest()
    worker.sums[0][:] = 1.0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EOPNOTSUPP])
def test_no_room_for_the_weights_leaves_nothing(tmp_path: Path, code: int) -> None:
    with pytest.raises(SharingError):
        share(opened(), tmp_path, refuse(code))
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_sums_is_the_workers_to_tell(
    shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path
) -> None:
    opening, sharing = shared
    with pytest.raises(SharingError, match=r"has no room for 0\.1 MiB"):
        attach(tmp_path, opening.info.welcome(0), SIZE, refuse(errno.ENOSPC))
    assert {path.name for path in sharing.folder.path.iterdir()} - {CALLERS} == {"weights"}


def test_a_worker_with_another_model_attaches_nothing(
    shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path
) -> None:
    with pytest.raises(SharingError, match=r"weights has \d+ bytes: expected"):
        attach(tmp_path, shared[0].info.welcome(0), 10 * SIZE)


def test_a_worker_elsewhere_sees_nothing(shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(SharingError, match="cannot be opened here: No such file"):
        joined(shared[0], elsewhere)


@LINUX_ONLY
def test_a_server_and_workers_that_come_and_go_leave_nothing_open(short_root: Path) -> None:
    with nothing_left_open():
        opening, sharing = share(opened(), short_root)
        for rank in range(3):
            nonce = joined(opening, short_root, rank).nonce
            sharing.admit(rank, nonce)
        sharing.forget(0)
        # Each rank has called; two of these calls have not been answered.
        shortcut = sharing.take_shortcut(1)
        if shortcut is not None:
            shortcut.close()
        sharing.close()
        del opening, sharing
    assert list(short_root.iterdir()) == []


@LINUX_ONLY
def test_memory_that_is_refused_leaves_nothing_open(tmp_path: Path) -> None:
    with nothing_left_open(), pytest.raises(SharingError):
        share(opened(), tmp_path, refuse(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_the_places_of_sums_are_found_while_they_are_shared(
    shared: tuple[RunSetup, ServerSharedMemory], tmp_path: Path
) -> None:
    opening, sharing = shared
    for rank in (0, 3):
        sharing.admit(rank, joined(opening, tmp_path, rank).nonce)
    frames, partial_sums = opening.shard.frames, sharing.partial_sums(1)
    terms = [[frame.of(sharing.sums[3][1]), frame.of(partial_sums)] for frame in frames]
    assert sharing.places_of(frames, terms) == [SumsPlace(rank=3, slot=1), SumsPlace(rank=None, slot=1)]
    elsewhere = [[frame.of(partial_sums.copy())] for frame in frames]
    assert sharing.places_of(frames, elsewhere) == []
    sharing.forget(3)
    assert sharing.places_of(frames, terms) == []


def test_sums_that_the_server_adds_are_anywhere_if_there_is_no_room(tmp_path: Path) -> None:
    _, sharing = share(opened(), tmp_path)
    sharing.allocate = refuse(errno.ENOSPC)
    vector = sharing.partial_sums(0)
    assert (vector.size, vector.dtype.name, sharing.partial_sums(0) is vector) == (SIZE, "float32", True)
    assert sorted(path.name for path in sharing.folder.path.iterdir() if path.name != CALLERS) == ["weights"]
    sharing.close()


def bits_of(shard: Shard) -> list[bytes]:
    return [shard.weights.tobytes(), shard.served_weights.tobytes(), *(slot.tobytes() for slot in shard.state.values())]


def updated(wire_weights: str) -> RunSetup:
    """Return a run whose weights and slots are no longer those of its start."""
    opening = open_run("run", job_of(momentum=0.9, wire_weights=wire_weights), digits(), AdmissionPolicy())
    opening.shard.add(Node(0, opening.info.job.micro_batches), np.linspace(-1, 1, SIZE, dtype=np.float32))
    opening.shard.update(0, 3)
    return opening


@pytest.mark.parametrize("wire_weights", ["float32", "bfloat16"])
def test_a_run_goes_on_in_other_memory_which_new_workers_find(tmp_path: Path, wire_weights: str) -> None:
    opening, sharing = share(updated(wire_weights), tmp_path)
    shard = opening.shard
    shard.add(Node(0, opening.info.job.micro_batches), np.ones(SIZE, np.float32))
    shard.update(0, 3)
    before, old = bits_of(shard), joined(opening, tmp_path).slots
    assert sharing.share_update(shard)
    assert bits_of(shard) == before
    assert sharing.move(shard)
    assert (sharing.generation, bits_of(shard)) == (1, before)
    shard.served_weights[:] = 7.0
    assert 7.0 not in old[1]
    assert set(joined(opening, tmp_path, rank=1).slots[1].tolist()) == {7.0}
    sharing.close()


def test_without_room_a_run_stays_where_it_is(tmp_path: Path) -> None:
    opening, sharing = share(opened(), tmp_path)
    shard, before = opening.shard, bits_of(opening.shard)
    assert sharing.share_update(shard)
    names = sorted(path.name for path in sharing.folder.path.iterdir())
    sharing.allocate = refuse(errno.ENOSPC)
    assert not sharing.move(shard)
    assert (sharing.generation, bits_of(shard)) == (0, before)
    assert sorted(path.name for path in sharing.folder.path.iterdir()) == names
    sharing.close()


def test_without_room_for_its_slots_no_update_is_shared(tmp_path: Path) -> None:
    opening, sharing = share(opened(), tmp_path)
    sharing.allocate = refuse(errno.ENOSPC)
    assert not sharing.share_update(opening.shard)
    sharing.allocate = reserve
    assert not sharing.share_update(opening.shard)
    sharing.close()
