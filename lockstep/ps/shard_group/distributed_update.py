"""The state of all servers of a run: their reports on an update, and the vector that was last gathered. Pure."""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.optim.clipping import BLOCK, add_blocks, scale_for
from lockstep.common.protocol.shard_messages import WEIGHTS, Collected, SliceFrame, UpdateDone
from lockstep.ps.run.progress import Moved
from lockstep.ps.shard.partition import held_frames
from lockstep.ps.shard.shard import Shard


class UpdatePhase(Enum):
    """The phases of an update that all servers make."""

    #: Clipping needs the norm of the whole gradient.
    MEASURING = "measuring the gradient"
    #: Each server updates its slice.
    UPDATING = "updating"
    #: All slices have their new weights.
    DONE = "done"


@dataclass(kw_only=True)
class DistributedUpdate:
    """The update of one step, under way or made by all servers."""

    step: int
    #: The number of servers besides the coordinator's.
    others: int
    phase: UpdatePhase = UpdatePhase.MEASURING
    #: The sums are divided by it.
    divisor: float = 1.0
    #: When the tree was whole, and how many seconds later all servers had made the update.
    began: float = 0.0
    seconds: float = 0.0
    #: The vectors that are gathered with it.
    collected: Collected = "nothing"
    #: Workers that are sent the new weights without being asked for.
    pushed: frozenset[int] = frozenset()
    #: The learning rate of our own slice, which is that of all.
    rate: float = 0.0
    #: By shard, for each block of its slice, the sum of the squares of the mean gradient.
    squares: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    #: By shard, what it reported after its update.
    reports: dict[int, UpdateDone] = field(default_factory=dict)

    def on_squares(self, shard: int, step: int, trained: int, squares: Vector) -> bool:
        """Keep the squares of the blocks of so many values, which travel as the bytes that they are.

        Return whether all shards have sent them.
        """
        if len(squares) != 2 * -(-trained // BLOCK):
            raise RemoteProtocolError(f"squares of {len(squares) / 2:g} blocks: expected one for {BLOCK} values")
        if self.phase is not UpdatePhase.MEASURING or step != self.step:
            return False
        self.squares[shard] = np.frombuffer(squares.tobytes(), np.float64)
        return len(self.squares) == self.others

    def scale(self, own: Shard) -> float | None:
        """Return the factor of clipping by the norm of the whole gradient: of all slices' blocks, in their order.

        None if nothing is clipped, or if there is one server, whose shard finds the factor itself.
        """
        clip_norm = own.policy.clip_norm
        if clip_norm is None or not self.others:
            return None
        blocks = np.concatenate([own.squares(self.divisor), *(self.squares[shard] for shard in sorted(self.squares))])
        return scale_for(add_blocks(blocks), clip_norm)

    def on_done(self, shard: int, done: UpdateDone) -> None:
        """Record that a shard has made the update."""
        if self.phase is UpdatePhase.UPDATING and done.step == self.step:
            self.reports.setdefault(shard, done)

    def is_made(self, own: Shard) -> bool:
        """Tell whether all slices have their new weights."""
        return own.updates > self.step and len(self.reports) == self.others

    # What the shards have reported

    @property
    def checksum(self) -> int:
        """The sum of the checksums of the other slices."""
        return sum(int(done.checksum) for done in self.reports.values())

    @property
    def are_finite(self) -> bool:
        """True if the weights in the other slices are finite."""
        return all(done.is_finite for done in self.reports.values())

    @property
    def moved(self) -> Moved:
        """Bytes that crossed the sockets of the other servers since their last update."""
        sums = sum(done.sums_bytes for done in self.reports.values())
        return Moved(sums=sums, weights=sum(done.weights_bytes for done in self.reports.values()))


@dataclass
class GatheredWeights:
    """Copies of what all servers hold, each made at the same number of updates."""

    weights: Vector
    #: The optimizer's slots, each as long as the trained part of the weights.
    state: dict[str, Vector]
    updates: int
    #: The weights that come in since the last `begin`, and how many: they may never be whole.
    coming: Vector = field(init=False)
    received: int = 0

    def __post_init__(self) -> None:
        self.coming = np.empty_like(self.weights)

    @classmethod
    def of(cls, whole: Shard) -> "GatheredWeights":
        """Return a copy of a shard of the whole vector."""
        return cls(whole.weights.copy(), {name: slot.copy() for name, slot in whole.state.items()}, whole.updates)

    def begin(self) -> None:
        """Begin to gather: until the end of it, the slots are of no use."""
        self.received = 0

    def put(self, name: str, part: Slice, values: Vector) -> None:
        """Write a part of a vector; `RemoteProtocolError` if there is no such vector or part of it."""
        vector = self.coming if name == WEIGHTS else self.state.get(name, np.empty(0, np.float32))
        if part.stop > vector.size:
            raise RemoteProtocolError(f"values {part.start} to {part.stop} of {name!r}: expected up to {vector.size}")
        vector[part.start : part.stop] = values
        if name == WEIGHTS:
            self.received += len(part)

    def put_sent(self, frame: SliceFrame, values: Vector, owned: Slice) -> None:
        """Write what a shard has sent of its slice; `RemoteProtocolError` if it is of another one."""
        part = Slice(frame.start, frame.start + len(values))
        if not owned.start <= part.start < part.stop <= owned.stop:
            raise RemoteProtocolError(f"values {part.start} to {part.stop} of {frame.name!r}: not of its slice")
        self.put(frame.name, part, values)

    def put_held(self, shard: Shard, updates: int, *, has_state: bool) -> None:
        """Write what a shard of this process holds."""
        for name, part, values in held_frames(shard, shard.owned, updates, has_state=has_state):
            self.put(name, part, values)

    def is_whole(self) -> bool:
        """Tell whether all of the weights have come."""
        return self.received == self.weights.size

    def end(self, updates: int) -> bool:
        """End the gathering; return whether all of the weights have come."""
        if not self.is_whole():
            return False
        self.weights, self.coming, self.updates = self.coming, self.weights, updates
        return True
