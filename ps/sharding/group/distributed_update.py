"""One update that all servers of a run make, each of its slice: what they tell of it, put together. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.aggregation.tree import Vector
from common.errors import RemoteProtocolError
from common.optim.clipping import BLOCK, add_blocks, scale_for
from common.protocol.shard_messages import Collected, UpdateDone
from ps.run.traffic import Moved
from ps.shard.checksum import MODULUS
from ps.shard.shard import Shard


@dataclass(frozen=True, kw_only=True)
class CompletedUpdate:
    """An update that all servers have made."""

    step: int
    rate: float
    #: Whether the weights in the slices of others are.
    are_finite: bool
    mark: int
    #: Bytes that crossed the sockets of the others since their last update.
    moved: Moved
    #: Seconds from the moment when the tree was whole.
    seconds: float


@dataclass(kw_only=True)
class DistributedUpdate:
    """The update of one step, under way."""

    #: When the tree was whole.
    began: float = 0.0
    #: What is gathered with it.
    collected: Collected = "nothing"
    #: Workers that are sent the new weights without being asked for.
    pushed: frozenset[int] = frozenset()
    rate: float = 0.0
    mark: int = 0
    #: Whether all slices but our own are so after it.
    are_finite: bool = True
    #: By shard, for each block of its slice, the sum of the squares of the mean gradient.
    squares: dict[bytes, NDArray[np.float64]] = field(default_factory=dict)

    def measure(self, peer: bytes, trained: int, squares: Vector) -> None:
        """Keep the squares of the blocks of so many values, which travel as the bytes that they are."""
        if len(squares) != 2 * -(-trained // BLOCK):
            raise RemoteProtocolError(f"squares of {len(squares) / 2:g} blocks: expected one for {BLOCK} values")
        self.squares[peer] = np.frombuffer(squares.tobytes(), np.float64)

    def scale(self, own: Shard, count: int, order: Sequence[bytes]) -> float:
        """Return the factor of clipping by the norm of the whole gradient: of all slices' blocks, in their order."""
        clip_norm = own.policy.clip_norm
        assert clip_norm is not None
        blocks = np.concatenate([own.squares(count), *(self.squares[peer] for peer in order)])
        return scale_for(add_blocks(blocks), clip_norm)

    def take(self, updated: UpdateDone) -> None:
        """Take in that a shard has made it."""
        self.mark += int(updated.mark)
        self.are_finite = self.are_finite and updated.is_finite

    def take_own(self, rate: float, mark: int) -> None:
        """Take in that it is made in our own slice."""
        self.rate = rate
        self.mark += mark

    def stepped(self, step: int, moved: Moved, now: float) -> CompletedUpdate:
        """Return what it came to, now that all have made it."""
        return CompletedUpdate(
            step=step,
            rate=self.rate,
            are_finite=self.are_finite,
            mark=self.mark % MODULUS,
            moved=moved,
            seconds=now - self.began,
        )
