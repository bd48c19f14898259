"""What all servers of a run have: their reports on an update, and the whole vector as it was last gathered. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.optim.clipping import BLOCK, add_blocks, scale_for
from lockstep.common.protocol.shard_messages import WEIGHTS, Collected, UpdateDone
from lockstep.ps.run.traffic import NOTHING, Moved
from lockstep.ps.shard.shard import Shard


@dataclass(kw_only=True)
class DistributedUpdate:
    """The update of one step, under way or made by all servers."""

    step: int = 0
    #: When the tree was whole, and how many seconds later all had made it.
    began: float = 0.0
    seconds: float = 0.0
    #: What is gathered with it.
    collected: Collected = "nothing"
    #: Workers that are sent the new weights without being asked for.
    pushed: frozenset[int] = frozenset()
    #: The learning rate of our own slice, which is that of all.
    rate: float = 0.0
    #: Whether the weights in the slices of the other servers are finite, and the sum of their checksums.
    checksum: int = 0
    are_finite: bool = True
    #: Bytes that crossed the sockets of the other servers since their last update.
    moved: Moved = NOTHING
    #: By shard, for each block of its slice, the sum of the squares of the mean gradient.
    squares: dict[bytes, NDArray[np.float64]] = field(default_factory=dict)

    def on_squares(self, peer: bytes, trained: int, squares: Vector) -> None:
        """Keep the squares of the blocks of so many values, which travel as the bytes that they are."""
        if len(squares) != 2 * -(-trained // BLOCK):
            raise RemoteProtocolError(f"squares of {len(squares) / 2:g} blocks: expected one for {BLOCK} values")
        self.squares[peer] = np.frombuffer(squares.tobytes(), np.float64)

    def scale(self, own: Shard, divisor: float, order: Sequence[bytes]) -> float:
        """Return the factor of clipping by the norm of the whole gradient: of all slices' blocks, in their order."""
        clip_norm = own.policy.clip_norm
        assert clip_norm is not None
        blocks = np.concatenate([own.squares(divisor), *(self.squares[peer] for peer in order)])
        return scale_for(add_blocks(blocks), clip_norm)

    def on_done(self, done: UpdateDone) -> None:
        """Record that a shard has made the update."""
        self.checksum += int(done.checksum)
        self.are_finite = self.are_finite and done.is_finite
        self.moved = Moved(sums=self.moved.sums + done.sums_bytes, weights=self.moved.weights + done.weights_bytes)


@dataclass
class GatheredWeights:
    """Copies of what all servers hold, each made at the same number of updates."""

    weights: Vector
    #: The optimizer's slots, each as long as the trained part of the weights.
    state: dict[str, Vector]
    updates: int
    #: Elements of the weights that have come since the last `begin`.
    received: int = field(default=0)

    @classmethod
    def of(cls, whole: Shard) -> "GatheredWeights":
        """Return a copy of a shard of the whole vector."""
        return cls(whole.weights.copy(), {name: slot.copy() for name, slot in whole.state.items()}, whole.updates)

    def begin(self) -> None:
        """Begin to gather: until the end of it, the weights are of no use."""
        self.received = 0

    def put(self, name: str, part: Slice, values: Vector) -> None:
        """Write a part of a vector; `RemoteProtocolError` if there is no such vector or part of it."""
        vector = self.weights if name == WEIGHTS else self.state.get(name, np.empty(0, np.float32))
        if part.stop > vector.size:
            raise RemoteProtocolError(f"values {part.start} to {part.stop} of {name!r}: expected up to {vector.size}")
        vector[part.start : part.stop] = values
        if name == WEIGHTS:
            self.received += len(part)

    def is_whole(self) -> bool:
        """Tell whether all of the weights have come."""
        return self.received == self.weights.size

    def end(self, updates: int) -> bool:
        """End the gathering; return whether all of the weights have come."""
        if not self.is_whole():
            return False
        self.updates = updates
        return True
