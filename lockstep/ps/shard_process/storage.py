"""From a welcome to a shard that can be filled: the slice, its rule, and the memory that the server may share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lockstep.common.aggregation.slices import Slice, slices_for
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError, SharingError
from lockstep.common.job.optimizer import Group, Span
from lockstep.common.job.own_code import NO_CODE, needs_code
from lockstep.common.model.source import source_from_welcome
from lockstep.common.protocol.shard_messages import MOMENTA, WEIGHTS, ShardWelcome
from lockstep.common.protocol.shared_files import WEIGHTS as WEIGHTS_FILE
from lockstep.common.protocol.shared_files import sums_file, sums_shape, weights_shape
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.ps.run.plan import plan_of
from lockstep.ps.shard.service import SendFrame, SliceService
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard.update_policy import policy_of


@dataclass
class ShardStorage:
    """One slice, and where its vectors are."""

    service: SliceService
    owned: Slice
    #: Of the whole vector.
    size: int
    #: The server's folder of shared memory, None if it is not shared.
    folder: SharedFolder | None = None
    #: What was read there, in hex, and why nothing was although it was offered.
    nonce: str = ""
    obstacle: str = ""

    @property
    def shard(self) -> Shard:
        """The arithmetic of the slice."""
        return self.service.shard

    @property
    def shows_weights(self) -> bool:
        """Whether the server sees our weights where they are: what workers share is rounded, or it is the weights."""
        return self.folder is not None and self.shard.policy.wire_weights.is_exact

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
            # Both: if the weights at hand turn out to be useless, there are none before them.
            return [(slot, self.owned.start) for slot in self.shard.slots]
        if name == MOMENTA:
            return [(self.shard.policy.momenta, 0)]
        if name not in self.shard.state:
            raise RemoteProtocolError(f"a vector {name!r}: expected one of {sorted(self.shard.state)}")
        return [(self.shard.state[name], self.owned.start)]

    def sums_of(self, rank: int) -> tuple[Vector, ...]:
        """Map a worker's slots of sums; return our part of each. `SharingError` if that fails."""
        if self.folder is None:
            raise SharingError("this shard does not share memory")
        vectors = self.folder.attach(sums_file(rank), sums_shape(self.size)).vectors
        return tuple(self.owned.of(vector) for vector in vectors)

    def close(self) -> None:
        """Leave the shared memory; vectors that are in use stay mapped."""
        if self.folder is not None:
            self.folder.close()


def storage_of(welcome: ShardWelcome, root: Path | None, send: SendFrame) -> ShardStorage:
    """Return the storage of a shard; a `UsageError` if this process cannot carry out the job.

    `root` is the folder that holds shared memory, None if there is none. `send` sends a worker weights.
    """
    job, size = welcome.job, welcome.size
    owned = slices_for(size, welcome.options.servers)[welcome.index]
    plan = plan_of(job, welcome.training_samples, welcome.test_samples)
    momenta = np.zeros(size - welcome.parameter_size, np.float32)
    own = NO_CODE
    if needs_code(job):
        own = source_from_welcome(job, welcome.source, welcome.model_files, welcome.model_folder).own_code()
    spans = [Span(stop, Group(decays, lr_factor)) for stop, decays, lr_factor in welcome.spans]
    spans = spans or [Span(welcome.parameter_size, Group())]
    if spans[-1].stop != welcome.parameter_size:
        raise RemoteProtocolError(f"groups of {spans[-1].stop} values: expected {welcome.parameter_size}")
    policy = policy_of(job, plan, spans, momenta, own)

    def storage(served: tuple[Vector, Vector], folder: SharedFolder | None, nonce: str, obstacle: str) -> ShardStorage:
        slots = served
        if not policy.wire_weights.is_exact:
            # Of what is served already: workers may read it before we are sent the weights, and a shard rounds at once.
            slots = served[0].copy(), served[1].copy()
        shard = Shard(slots, policy, job.micro_batches, owned.start, served)
        return ShardStorage(SliceService(shard, send), owned, size, folder, nonce, obstacle)

    obstacle = ""
    if welcome.memory and root is not None:
        try:
            folder, first, second, nonce = _attach(root, welcome)
            return storage((owned.of(first), owned.of(second)), folder, nonce, "")
        except SharingError as error:
            obstacle = str(error)
    return storage((np.zeros(len(owned), np.float32), np.zeros(len(owned), np.float32)), None, "", obstacle)


def _attach(root: Path, welcome: ShardWelcome) -> tuple[SharedFolder, Vector, Vector, str]:
    """Map the weights, of which this process writes one slice."""
    folder = SharedFolder.join(root, welcome.memory)
    try:
        weights = folder.attach(WEIGHTS_FILE, weights_shape(welcome.size), is_writable=True)
    except SharingError:
        folder.close()
        raise
    first, second = weights.vectors
    return folder, first, second, weights.nonce.hex()
