"""What a shard does with its slice: it adds sums, makes updates, and reports them to the server. A shell."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, assert_never

import numpy as np

from lockstep.common.aggregation.checksum import MODULUS
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import SharingError
from lockstep.common.protocol.messages import Message
from lockstep.common.protocol.shard_messages import CollectedFrame, Squares, UpdateDone
from lockstep.ps.run.traffic import Traffic
from lockstep.ps.shard.partition import checksum_in, held_frames
from lockstep.ps.shard_process import state as machine
from lockstep.ps.shard_process.storage import ShardStorage


class SendArrays(Protocol):
    """Sends the server a message."""

    def __call__(self, message: Message, *arrays: Vector) -> None: ...


@dataclass
class SliceExecutor:
    """One slice, and the sums for it."""

    storage: ShardStorage
    send: SendArrays
    #: What crossed the workers' sockets since the last update.
    traffic: Traffic
    #: By rank, our part of the sums of workers that share memory.
    sums: dict[int, tuple[Vector, ...]] = field(default_factory=dict)

    def perform(
        self,
        effect: machine.AddFrame | machine.AddSharedSlice | machine.SendSquares | machine.UpdateSlice,
        arrays: Sequence[Vector],
    ) -> None:
        """Carry out an effect on the slice; `arrays` are those of the message at hand."""
        storage = self.storage
        match effect:
            case machine.AddFrame():
                storage.shard.receive(effect.frame, effect.node, arrays[0])
            case machine.AddSharedSlice():
                sums = self.sums[effect.rank][effect.slot]
                storage.shard.add(effect.node, sums)
                # The server leases the slot again as soon as this is acknowledged.
                storage.shard.settle(sums)
            case machine.SendSquares():
                self.send(Squares(step=effect.step), storage.shard.squares(effect.count).view(np.float32))
            case machine.UpdateSlice(update=update):
                storage.shard.update(update.step, update.count, update.scale)
                if update.collected != "nothing":
                    self.send_held(update.step + 1, has_state=update.collected == "all")
                checksum = checksum_in(storage.shard, update.step, storage.size)
                moved = self.traffic.drain()
                self.send(
                    UpdateDone(
                        step=update.step,
                        checksum=str(checksum % MODULUS),
                        sums_bytes=moved.sums,
                        weights_bytes=moved.weights,
                        is_finite=storage.shard.not_finite is None,
                    )
                )
            case _:
                assert_never(effect)

    def send_held(self, updates: int, *, has_state: bool) -> None:
        """Send the server what it cannot see of the slice."""
        storage = self.storage
        frames = held_frames(storage.shard, updates, has_weights=not storage.shows_weights, has_state=has_state)
        for name, part, values in frames:
            self.send(CollectedFrame(name=name, steps=updates, start=part.start), values)

    def map_sums(self, rank: int) -> Iterator[machine.ShardEvent]:
        """Map our part of the sums of a worker that shares memory."""
        try:
            self.sums[rank] = self.storage.sums_of(rank)
        except SharingError as error:
            yield machine.SumsMissing(rank=rank, reason=str(error))

    def unmap_sums(self, rank: int) -> None:
        """Forget the sums of a worker that is gone."""
        self.sums.pop(rank, None)
