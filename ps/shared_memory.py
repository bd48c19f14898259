"""The server's end of the memory that it shares with processes on its machine. A shell, which decides nothing."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from common.aggregation.tree import Vector
from common.errors import RemoteProtocolError, SharingError
from common.protocol.memory_offer import CALLERS, WEIGHTS, sums_file, sums_shape, weights_shape
from common.transport.shared_memory.folder import SharedFolder
from common.transport.shared_memory.packet_socket import Callers, PacketSocket
from common.transport.shared_memory.segment import Allocate, reserve
from ps.setup import RunSetup


@dataclass
class ServerSharedMemory:
    """A run's folder of shared memory, and what workers have put there."""

    folder: SharedFolder
    #: Number of values of a vector.
    size: int
    #: By rank, the slots of sums of the workers that share.
    sums: dict[int, tuple[Vector, ...]] = field(default_factory=dict)
    #: Where workers ask for a shortcut, None if there can be none.
    callers: Callers | None = None

    def admit(self, rank: int, nonce: str) -> None:
        """Map the sums of a worker that claims to have read the nonce; `RemoteProtocolError` if it has not."""
        if nonce != self.folder.nonce.hex():
            raise RemoteProtocolError(f"the nonce {nonce!r} is not that of the shared memory")
        try:
            segment = self.folder.attach(sums_file(rank), sums_shape(self.size))
        except SharingError as error:
            raise RemoteProtocolError(f"sums that are not there: {error}") from None
        self.sums[rank] = segment.vectors

    def take_shortcut(self, rank: int) -> PacketSocket | None:
        """Return the shortcut that a worker has asked for, if it has; the caller owns it."""
        return None if self.callers is None else self.callers.answer(sums_file(rank))

    def forget(self, rank: int) -> None:
        """Release the memory of a worker that is gone."""
        self.sums.pop(rank, None)
        unanswered = self.take_shortcut(rank)
        if unanswered is not None:
            unanswered.close()
        self.folder.drop(sums_file(rank))

    def close(self) -> None:
        """Remove the folder; vectors that are in use stay mapped."""
        if self.callers is not None:
            self.callers.close()
        self.folder.remove()


def share(setup: RunSetup, root: Path, allocate: Allocate = reserve) -> tuple[RunSetup, ServerSharedMemory]:
    """Move what workers compute with into memory that they may share here; `SharingError` if there is none."""
    folder, size = SharedFolder.create(root), setup.layout.size
    try:
        first, second = folder.make(WEIGHTS, weights_shape(size), allocate).vectors
    except SharingError:
        folder.remove()
        raise
    first[:], second[:] = setup.shard.served
    if setup.shard.policy.wire_weights.is_exact:
        shard = replace(setup.shard, slots=(first, second))
    else:
        shard = replace(setup.shard, rounded=(first, second))
    sharing = ServerSharedMemory(folder, size, callers=Callers.at(folder.path / CALLERS))
    return replace(setup, shard=shard, info=replace(setup.info, memory=folder.name)), sharing
