"""The whole vector as it was last gathered from all servers: for digests, checkpoints and the end of a run. Pure."""

from dataclasses import dataclass, field

import numpy as np

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.shard_messages import WEIGHTS
from lockstep.ps.shard.shard import Shard


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
