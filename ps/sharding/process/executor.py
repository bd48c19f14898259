"""What a shard does with its slice: sums are added, updates are made, and the server is told of them. A shell."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, assert_never

import numpy as np

from common.aggregation.tree import Vector
from common.errors import SharingError
from common.protocol.messages import Message
from common.protocol.shard_messages import CollectedFrame, Squares, UpdateDone
from ps.run.traffic import Traffic
from ps.shard.checksum import MODULUS
from ps.shard.partition import checksum_in, held_frames
from ps.sharding.process import effects, events
from ps.sharding.process.storage import ShardStorage


class SendToServer(Protocol):
    """Sends the server a message."""

    def __call__(self, message: Message, *arrays: Vector) -> None: ...


@dataclass
class SliceExecutor:
    """One slice, and the sums for it."""

    place: ShardStorage
    tell: SendToServer
    #: What crossed the workers' sockets since the last update.
    traffic: Traffic
    #: By rank, our part of the sums of workers that share memory.
    sums: dict[int, tuple[Vector, ...]] = field(default_factory=dict)

    def do(
        self,
        effect: effects.AddFrame | effects.AddSharedSlice | effects.SendSquares | effects.UpdateSlice,
        arrays: Sequence[Vector],
    ) -> None:
        """Carry out what concerns the slice; `arrays` are those of the message at hand."""
        place = self.place
        match effect:
            case effects.AddFrame():
                place.shard.receive(effect.frame, effect.node, arrays[0])
            case effects.AddSharedSlice():
                sums = self.sums[effect.rank][effect.slot]
                place.shard.add(effect.node, sums)
                # The server lends the slot again as soon as it hears that this is done.
                place.shard.settle(sums)
            case effects.SendSquares():
                self.tell(Squares(step=effect.step), place.shard.squares(effect.count).view(np.float32))
            case effects.UpdateSlice(update=update):
                place.shard.update(update.step, update.count, update.scale)
                if update.collected != "nothing":
                    self.tell_held(update.step + 1, has_state=update.collected == "all")
                mark = checksum_in(place.shard, update.step, place.size)
                moved = self.traffic.take()
                self.tell(
                    UpdateDone(
                        step=update.step,
                        mark=str(mark % MODULUS),
                        sums_bytes=moved.sums,
                        weights_bytes=moved.weights,
                        is_finite=place.shard.first_not_finite() is None,
                    )
                )
            case _:
                assert_never(effect)

    def tell_held(self, updates: int, *, has_state: bool) -> None:
        """Send the server what it cannot see of the slice."""
        place = self.place
        pieces = held_frames(place.shard, updates, has_weights=not place.shows_weights, has_state=has_state)
        for name, part, values in pieces:
            self.tell(CollectedFrame(name=name, steps=updates, start=part.start), values)

    def map(self, rank: int) -> Iterator[events.ShardEvent]:
        """Map our part of the sums of a worker that shares memory."""
        try:
            self.sums[rank] = self.place.sums_of(rank)
        except SharingError as error:
            yield events.SumsMissing(rank=rank, reason=str(error))

    def drop(self, rank: int) -> None:
        """Forget the sums of a worker that is gone."""
        self.sums.pop(rank, None)
