"""The worker's end of memory that it shares with its server: a shell, which decides nothing."""

from dataclasses import dataclass
from pathlib import Path

from common.aggregation.tree import Vector
from common.protocol.messages import Welcome
from common.protocol.shared_memory import CALLERS, WEIGHTS, sums_file, sums_shape, weights_shape
from common.transport.shared_memory.folder import SharedFolder
from common.transport.shared_memory.packet_socket import PacketSocket, call
from common.transport.shared_memory.segment import Allocate, reserve


@dataclass(frozen=True)
class SharedVectors:
    """What a worker computes with where it shares memory."""

    #: What was read there, by which the server knows that we see its memory.
    nonce: str
    #: The weights, read only.
    slots: tuple[Vector, Vector]
    #: Where sums are written.
    sums: tuple[Vector, ...]
    #: What was asked for, None where there can be none.
    shortcut: PacketSocket | None


def attach(root: Path, welcome: Welcome, size: int, allocate: Allocate = reserve) -> SharedVectors:
    """Map the weights that the server offers, and make room for our sums; `SharingError` where that cannot be."""
    folder = SharedFolder.join(root, welcome.memory)
    try:
        weights = folder.attach(WEIGHTS, weights_shape(size))
        folder.nonce = weights.nonce
        sums = folder.make(sums_file(welcome.rank), sums_shape(size), allocate)
        shortcut = call(folder.path / CALLERS, sums_file(welcome.rank))
    finally:
        folder.close()
    first, second = weights.vectors
    return SharedVectors(weights.nonce.hex(), (first, second), sums.vectors, shortcut)
