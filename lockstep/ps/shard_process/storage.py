"""From a welcome to a shard that can be filled: the slice, its rule, and its memory."""

from dataclasses import dataclass, field

import numpy as np

from lockstep.common.aggregation.slices import Slice, Span, slices_for
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.job.own_code import NO_CODE, needs_code
from lockstep.common.model.source import source_from_welcome
from lockstep.common.protocol.shard_messages import MOMENTA, WEIGHTS, ShardWelcome
from lockstep.ps.run.plan import plan_of
from lockstep.ps.shard.service import SliceService, WeightsOutbox
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard.update_policy import policy_of
from lockstep.ps.shard_process.state import Acknowledgements


@dataclass
class ShardStorage:
    """One slice, and where its vectors are."""

    service: SliceService
    #: Of the whole vector.
    size: int
    acknowledgements: Acknowledgements = field(default_factory=Acknowledgements)

    @property
    def shard(self) -> Shard:
        """The arithmetic of the slice."""
        return self.service.shard

    def begin(self, steps: int) -> None:
        """Record that the slice has been filled with what it was after so many steps."""
        self.shard.updates = steps
        self.shard.refresh_served()

    def fill(self, name: str, start: int, values: Vector) -> None:
        """Copy a frame of a vector that the slice begins with; `RemoteProtocolError` if there is no such place."""
        for vector, first in self._vectors(name):
            part = Slice(start - first, start - first + len(values))
            if not 0 <= part.start < part.stop <= vector.size:
                raise RemoteProtocolError(f"values {start} to {start + len(values)} of {name!r}: not in this slice")
            vector[part.start : part.stop] = values

    def _vectors(self, name: str) -> list[tuple[Vector, int]]:
        """Return the vectors of that name, with the place of the first value of each in the whole one."""
        if name == WEIGHTS:
            # Both, because no earlier weights exist if the current ones turn out to be useless.
            return [(slot, self.shard.start) for slot in self.shard.slots]
        if name == MOMENTA:
            return [(self.shard.policy.momenta, 0)]
        if name not in self.shard.state:
            raise RemoteProtocolError(f"a vector {name!r}: expected one of {sorted(self.shard.state)}")
        return [(self.shard.state[name], self.shard.start)]


def storage_of(welcome: ShardWelcome, outbox: WeightsOutbox) -> ShardStorage:
    """Return the storage of a shard, by which it sends workers weights; a `UsageError` if it cannot do the job."""
    job, size = welcome.job, welcome.size
    owned = slices_for(size, welcome.options.servers)[welcome.index]
    plan = plan_of(job, welcome.training_samples, welcome.test_samples)
    momenta = np.zeros(size - welcome.parameter_size, np.float32)
    own = NO_CODE
    if needs_code(job):
        own = source_from_welcome(job, welcome.source, welcome.model_files, welcome.model_folder).own_code()
    spans = welcome.spans or (Span(welcome.parameter_size),)
    if spans[-1].stop != welcome.parameter_size:
        raise RemoteProtocolError(f"groups of {spans[-1].stop} values: expected {welcome.parameter_size}")
    policy = policy_of(job, plan, spans, momenta, own)
    slots = np.zeros(len(owned), np.float32), np.zeros(len(owned), np.float32)
    return ShardStorage(SliceService(Shard(slots, policy, job.micro_batches, owned.start), outbox), size)
