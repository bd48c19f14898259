"""The server's end of the memory that it shares with processes on its machine. A shell, which decides nothing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import Pair
from lockstep.common.errors import RemoteProtocolError, SharingError
from lockstep.common.protocol.messages import SumsPlace
from lockstep.common.protocol.shared_files import (
    CALLERS,
    EXACT_WEIGHTS,
    STATE,
    WEIGHTS,
    partial_sums_file,
    partial_sums_shape,
    state_sets,
    state_shape,
    sums_file,
    sums_shape,
    weights_shape,
)
from lockstep.common.protocol.step_board import StepBoard
from lockstep.common.transport.shared_memory.folder import FileLock, SharedFolder
from lockstep.common.transport.shared_memory.packet_socket import Callers, PacketSocket
from lockstep.common.transport.shared_memory.segment import Allocate, Shape, reserve
from lockstep.ps.setup import RunSetup
from lockstep.ps.shard.shard import Shard

#: Bytes of a value.
_VALUE = 4

#: Most vectors of sums of the server's that workers are pointed to; if it needs more, its updates are not leased.
MOST_PARTIAL_SUMS = 64

#: What is added to the name of a file that is to replace another.
_NEXT = "-next"


@dataclass
class ServerSharedMemory:
    """A run's folder of shared memory, and what the server and workers have put there."""

    folder: SharedFolder
    #: Number of values of a vector.
    size: int
    #: By rank, the slots of sums of the workers that share.
    sums: dict[int, tuple[Vector, ...]] = field(default_factory=dict)
    #: By rank, where they show how far they are; and where we do.
    boards: dict[int, StepBoard] = field(default_factory=dict)
    board: StepBoard | None = None
    #: Where workers ask for a shortcut, None if there can be none.
    callers: Callers | None = None
    #: How often the weights have moved into other files.
    generation: int = 0
    allocate: Allocate = reserve
    #: Vectors for sums that the server adds, the first ones in shared memory.
    _partial_sums: list[Vector] = field(default_factory=list)
    #: By their addresses, the places of all sums in shared memory.
    _places: dict[int, SumsPlace] = field(default_factory=dict)
    #: Whether all that an update needs is in shared memory; None before that was tried.
    _has_update: bool | None = None

    def admit(self, rank: int, nonce: str) -> None:
        """Map the sums of a worker that claims to have read the nonce; `RemoteProtocolError` if it has not."""
        if nonce != self.folder.nonce.hex():
            raise RemoteProtocolError(f"the nonce {nonce!r} is not that of the shared memory")
        try:
            segment = self.folder.attach(sums_file(rank), sums_shape(self.size))
        except SharingError as error:
            raise RemoteProtocolError(f"sums that are not there: {error}") from None
        self.sums[rank], self.boards[rank] = segment.vectors, StepBoard.of(segment.head)
        for slot, vector in enumerate(segment.vectors):
            self._places[_address(vector)] = SumsPlace(rank=rank, slot=slot)

    def take_shortcut(self, rank: int) -> PacketSocket | None:
        """Return the shortcut that a worker has asked for, if it has; the caller owns it."""
        return None if self.callers is None else self.callers.answer(sums_file(rank))

    def forget(self, rank: int) -> None:
        """Release the memory of a worker that is gone."""
        self.boards.pop(rank, None)
        for vector in self.sums.pop(rank, ()):
            self._places.pop(_address(vector), None)
        unanswered = self.take_shortcut(rank)
        if unanswered is not None:
            unanswered.close()
        self.folder.drop(sums_file(rank))

    def lock_of(self, rank: int) -> FileLock:
        """Open the lock that a worker holds while it makes a slice of an update; `SharingError` if it is gone."""
        return self.folder.lock_of(sums_file(rank))

    def partial_sums(self, index: int) -> Vector:
        """Return the vector of that index for sums that are added here, float32 of the whole size.

        It is in shared memory if there is room.
        """
        while index >= len(self._partial_sums):
            self._partial_sums.append(self._make_partial_sums(len(self._partial_sums)))
        return self._partial_sums[index]

    def _make_partial_sums(self, slot: int) -> Vector:
        if slot < MOST_PARTIAL_SUMS:
            try:
                (vector,) = self._make(partial_sums_file(slot), partial_sums_shape(self.size))
            except SharingError:
                pass
            else:
                self._places[_address(vector)] = SumsPlace(rank=None, slot=slot)
                return vector
        return np.empty(self.size, np.float32)

    def places_of(self, frames: Sequence[Slice], terms: Sequence[Sequence[Vector]]) -> list[SumsPlace]:
        """Return where the terms of all frames are, each in one vector; none if they are not all in shared memory."""
        # A shard of the whole vector: its first frame begins where the vector does.
        bases = [_address(term) for term in terms[0]]
        places = [self._places[base] for base in bases if base in self._places]
        if len(places) < len(bases):
            return []
        for frame, found in zip(frames, terms, strict=True):
            if [_address(term) - frame.start * _VALUE for term in found] != bases:
                return []
        return places

    def share_update(self, shard: Shard) -> bool:
        """Share all that an update of the whole vector reads and writes, if it is not yet; return whether it is.

        There are two sets of the optimizer's slots then. It is not if there is no room.
        """
        if self._has_update is None:
            try:
                self._move(shard, shard.served, "")
            except SharingError:
                self._has_update = False
            else:
                self._has_update = True
        return self._has_update

    def _move(self, shard: Shard, served: Pair, suffix: str) -> None:
        """Move the rest into files whose names end with the suffix; `SharingError`, with none of them left, if not."""
        names, size = list(shard.state), shard.policy.parameter_size
        try:
            sets = state_sets(names, self._make(STATE + suffix, state_shape(names, size)))
            weights = served
            if not shard.policy.wire_weights.is_exact:
                first, second = self._make(EXACT_WEIGHTS + suffix, weights_shape(self.size))
                weights = first, second
        except SharingError:
            self.folder.drop(STATE + suffix)
            raise
        shard.move(weights, served, sets)

    def _make(self, name: str, shape: Shape) -> tuple[Vector, ...]:
        return self.folder.make(name, shape, self.allocate).vectors

    def move(self, shard: Shard) -> bool:
        """Move all of it into new files, and leave the old ones to whoever has them; return False if there is no room.

        Whoever attaches these files from now on gets the new ones.
        """
        try:
            segment = self.folder.make(WEIGHTS + _NEXT, weights_shape(self.size), self.allocate)
            first, second = segment.vectors
            self._move(shard, (first, second), _NEXT)
        except SharingError:
            self.folder.drop(WEIGHTS + _NEXT)
            return False
        for name in (WEIGHTS, STATE, *([] if shard.policy.wire_weights.is_exact else [EXACT_WEIGHTS])):
            self.folder.replace(name, by=name + _NEXT)
        self.generation += 1
        self.board = StepBoard.of(segment.head)
        return True

    def close(self) -> None:
        """Remove the folder; vectors that are in use stay mapped."""
        if self.callers is not None:
            self.callers.close()
        self.folder.remove()


@dataclass
class WorkerLocks:
    """By rank, locks on the files of workers: who has one may write weights, and whoever takes it prevents that."""

    _locks: dict[int, FileLock] = field(default_factory=dict)

    def open(self, rank: int, sharing: ServerSharedMemory) -> None:
        """Open the lock of a worker, if it is not; `SharingError` if its file is gone."""
        if rank not in self._locks:
            self._locks[rank] = sharing.lock_of(rank)

    def acquire(self, rank: int) -> bool:
        """Take a lock that is open, without waiting; return whether it is ours now."""
        return self._locks[rank].acquire()

    def release(self, rank: int) -> None:
        """Let the worker have its lock."""
        self._locks[rank].release()

    def close(self, rank: int) -> None:
        """Close a lock, if it is open."""
        if rank in self._locks:
            self._locks.pop(rank).close()

    def close_others(self, kept: Collection[int]) -> None:
        """Close the locks of all other workers."""
        for rank in self._locks.keys() - kept:
            self.close(rank)

    def close_all(self) -> None:
        """Close all locks."""
        self.close_others(())


def _address(vector: Vector) -> int:
    return int(vector.__array_interface__["data"][0])


def share(setup: RunSetup, root: Path, allocate: Allocate = reserve) -> tuple[RunSetup, ServerSharedMemory]:
    """Move what workers compute with into memory that they may share here; `SharingError` if there is none."""
    folder, size = SharedFolder.create(root), setup.layout.size
    try:
        segment = folder.make(WEIGHTS, weights_shape(size), allocate)
    except SharingError:
        folder.remove()
        raise
    first, second = segment.vectors
    first[:], second[:] = setup.shard.served
    if setup.shard.policy.wire_weights.is_exact:
        shard = replace(setup.shard, slots=(first, second))
    else:
        shard = replace(setup.shard, rounded=(first, second))
    callers = Callers.at(folder.path / CALLERS)
    sharing = ServerSharedMemory(folder, size, callers=callers, board=StepBoard.of(segment.head), allocate=allocate)
    if setup.info.servers == 1:
        shard = replace(shard, partial_sums=sharing.partial_sums)
    return replace(setup, shard=shard, info=replace(setup.info, memory=folder.name)), sharing
