"""The server's end of the memory that it shares with processes on its machine. A shell, which decides nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from lockstep.common.aggregation.update import Pair
from lockstep.common.errors import RemoteProtocolError, SharingError
from lockstep.common.protocol.team_memory import (
    EXACT_WEIGHTS,
    STATE,
    WEIGHTS,
    TeamShape,
    UpdateMarks,
    file_of,
    keep_order,
    lock_file,
    state_sets,
    state_shape,
    update_file,
    weights_shape,
)
from lockstep.common.transport.shared_memory.file_lock import FileLock
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.common.transport.shared_memory.segment import Allocate, Segment, Shape, reserve
from lockstep.ps.setup import RunSetup
from lockstep.ps.shard.shard import Shard

#: The end of the name of a file that is to replace another.
_NEXT = "-next"


@dataclass
class ServerSharedMemory:
    """A run's folder of shared memory, and what the server and workers have put there."""

    folder: SharedFolder
    #: By rank, the workers that may make several steps by themselves.
    teams: dict[int, TeamShape] = field(default_factory=dict)
    #: By slice; none as long as only the server has made updates. A process writes a slice only while it has the
    #: slice's lock, and only if the marks allow it. So no other process is writing while one process has all locks.
    locks: list[FileLock] = field(default_factory=list)
    #: By rank, of the teams that have had a lease of several steps here.
    marks: dict[int, UpdateMarks] = field(default_factory=dict)
    #: How often the weights have moved into other files.
    generation: int = 0
    allocate: Allocate = reserve
    #: Called between two writes to a team's marks, or two reads, whose order matters.
    keep_order: Callable[[], None] = keep_order

    def admit(self, rank: int, nonce: str, team: TeamShape | None = None) -> None:
        """Let a worker share that claims to have read the nonce; `RemoteProtocolError` if it has not.

        It may make several steps by itself if it is a team of that shape.
        """
        if nonce != self.folder.nonce.hex():
            raise RemoteProtocolError(f"the nonce {nonce!r} is not that of the shared memory")
        if team is not None:
            self.teams[rank] = team

    def forget(self, rank: int) -> None:
        """Release the memory of a worker that is gone."""
        self.teams.pop(rank, None)
        if self.marks.pop(rank, None) is not None:
            self.folder.drop(update_file(rank))

    def share_update(self, shard: Shard, rank: int) -> UpdateMarks | None:
        """Share all that an update of the whole vector reads and writes with a team; return its marks.

        There are two sets of the optimizer's slots then. None if it is not a team; `SharingError` without room.
        """
        team = self.teams.get(rank)
        if team is None:
            return None
        slices = len(team.slices)
        if not self.locks:
            self.locks = self._share(shard, shard.served, "", slices)
        # Another team may cut a vector more often.
        self._add_locks(self.locks, "", slices)
        if rank not in self.marks:
            segment = self._make(update_file(rank), file_of(team.of_update()))
            self.marks[rank] = msgspec.structs.replace(UpdateMarks.of(segment, team), keep_order=self.keep_order)
        return self.marks[rank]

    def _share(self, shard: Shard, served: Pair, suffix: str, slices: int) -> list[FileLock]:
        """Move the rest into files whose names end with the suffix; return the locks of so many slices.

        `SharingError`, with none of the files left, if not.
        """
        names, size = list(shard.state), shard.policy.parameter_size
        weights, locks = served, list[FileLock]()
        try:
            sets = state_sets(names, self._make(STATE + suffix, state_shape(names, size)).vectors)
            if not shard.policy.wire_weights.is_exact:
                first, second = self._make(EXACT_WEIGHTS + suffix, weights_shape(shard.weights.size)).vectors
                weights = first, second
            self._add_locks(locks, suffix, slices)
        except SharingError:
            _release(locks)
            for name in _update_files(slices):
                self.folder.drop(name + suffix)
            raise
        shard.move(weights, served, sets)
        return locks

    def _make(self, name: str, shape: Shape) -> Segment:
        return self.folder.make(name, shape, self.allocate)

    def _add_locks(self, locks: list[FileLock], suffix: str, slices: int) -> None:
        """Make those locks of so many slices that are not there yet."""
        while len(locks) < slices:
            locks.append(self.folder.make_lock(lock_file(len(locks)) + suffix))

    def move(self, shard: Shard) -> bool:
        """Move all of it into new files; return False if there is no room.

        Processes that have the old files keep them, and those that attach the files from now on get the new ones. A
        team's marks are made when it needs them. Locks that we had are released with the old memory, where no update
        may be made any more.
        """
        old, slices = self.locks, len(self.locks)
        try:
            first, second = self._make(WEIGHTS + _NEXT, weights_shape(shard.weights.size)).vectors
            self.locks = self._share(shard, (first, second), _NEXT, slices)
        except SharingError:
            self.folder.drop(WEIGHTS + _NEXT)
            return False
        for name in (WEIGHTS, *_update_files(slices)):
            if name != EXACT_WEIGHTS or not shard.policy.wire_weights.is_exact:
                self.folder.replace(name, by=name + _NEXT)
        for rank in self.marks:
            self.folder.drop(update_file(rank))
        self.marks = {}
        self.generation += 1
        _release(old)
        return True

    def close(self) -> None:
        """Remove the folder; vectors that are in use stay mapped."""
        _release(self.locks)
        self.folder.remove()


def _release(locks: Sequence[FileLock]) -> None:
    """Release locks for good."""
    for lock in locks:
        lock.close()


def _update_files(slices: int) -> Sequence[str]:
    """Return the names of all files that an update needs besides that of the weights that workers compute with."""
    return [STATE, EXACT_WEIGHTS, *(lock_file(slice_) for slice_ in range(slices))]


def share(setup: RunSetup, root: Path, allocate: Allocate = reserve) -> tuple[RunSetup, ServerSharedMemory]:
    """Move the weights that workers compute with into memory that they may share; `SharingError` if that fails."""
    folder = SharedFolder.create(root)
    try:
        segment = folder.make(WEIGHTS, weights_shape(setup.layout.size), allocate)
    except SharingError:
        folder.remove()
        raise
    first, second = segment.vectors
    first[:], second[:] = setup.shard.served
    if setup.shard.policy.wire_weights.is_exact:
        shard = replace(setup.shard, slots=(first, second))
    else:
        shard = replace(setup.shard, rounded=(first, second))
    sharing = ServerSharedMemory(folder, allocate=allocate)
    return msgspec.structs.replace(
        setup, shard=shard, info=msgspec.structs.replace(setup.info, memory=folder.name)
    ), sharing
