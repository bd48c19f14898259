"""The initial state of a run's shards: their welcomes, and the vectors of their slices."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lockstep.common.aggregation.slices import FRAME, Slice, slices_for
from lockstep.common.job.own_code import needs_code
from lockstep.common.protocol.messages import StandbyAddress
from lockstep.common.protocol.shard_messages import ShardWelcome
from lockstep.ps.run.info import RunInfo
from lockstep.ps.shard.partition import NamedFrame, initial_frames
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard_group.members import PING_S

#: Seconds of the server's silence after which a shard goes to a standby, at least: it is pinged once a second.
LEAST_TAKEOVER_S = 3.0 * PING_S

#: Messages without arrays that may wait for a shard.
QUEUE = 1024


@dataclass
class InitialSlices:
    """The whole vector as the run begins, cut into the slices of its servers."""

    info: RunInfo
    #: Its memory may be the one that workers share.
    whole: Shard
    #: The standbys to which shards go if this server is gone.
    standbys: tuple[StandbyAddress, ...] = ()
    slices: list[Slice] = field(init=False)

    def __post_init__(self) -> None:
        self.slices = slices_for(self.whole.weights.size, self.info.options.servers)

    def welcome(self, index: int) -> ShardWelcome:
        """Return the welcome of the shard with one of the slices."""
        options = self.info.options
        return ShardWelcome(
            index=index,
            run=self.info.run,
            job=self.info.job,
            training_samples=self.info.training_samples,
            size=self.whole.weights.size,
            parameter_size=self.whole.policy.parameter_size,
            spans=tuple(self.whole.policy.spans),
            term=self.info.term,
            standbys=self.standbys,
            options=msgspec.structs.replace(options, takeover_seconds=max(options.takeover_seconds, LEAST_TAKEOVER_S)),
            **(self._own_source() if needs_code(self.info.job) else {}),
        )

    def _own_source(self) -> dict[str, Any]:
        """Return the fields of a welcome that a shard needs to call the user's functions."""
        info = self.info
        return {"source": info.source, "model_files": tuple(info.model_files), "model_folder": info.model_folder}

    def frames(self, index: int) -> Iterator[NamedFrame]:
        """Yield the vectors of a slice."""
        return initial_frames(self.whole, self.slices[index])

    def trained(self, index: int) -> int:
        """Return how many of the values in a slice are trained."""
        owned = self.slices[index]
        return max(0, min(owned.stop, self.whole.policy.parameter_size) - owned.start)

    def most_waiting(self) -> int:
        """Return how many messages may have to wait for a shard: its slice, and commands; 0 if no shards exist."""
        if not self.slices[1:]:
            return 0
        vectors = 1 + len(self.whole.state)
        momenta = -(-len(self.whole.policy.momenta) // FRAME)
        return QUEUE + momenta + vectors * max(len(owned.frames()) for owned in self.slices[1:])
