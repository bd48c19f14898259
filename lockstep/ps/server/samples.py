"""The part of the server that sends the samples of a run to workers that lack the data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.manifest import Manifest, packed, part_of
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.messages import Message, Samples, SamplesRequest
from lockstep.ps.coordinator.events import Event, Received
from lockstep.ps.coordinator.membership import Membership
from lockstep.ps.shard.outbox import Outbox


@dataclass(frozen=True)
class SampleSender:
    """The data of a run, for workers that do not have it."""

    data: TrainTest
    #: Of the data, None if this run does not send any.
    manifest: Manifest | None
    membership: Membership
    outbox: Outbox

    def handles(self, peer: bytes, message: Message) -> bool:
        return isinstance(message, SamplesRequest)

    def on_message(self, peer: bytes, message: Message, arrays: Sequence[Vector]) -> Sequence[Event]:
        """Send samples to a worker, whose leases do not run out while they are on their way."""
        assert isinstance(message, SamplesRequest)
        if self.manifest is None:
            raise RemoteProtocolError("samples are asked for, which this run does not send: its job lacks ship_data")
        if peer not in self.membership.members:
            return []
        answer = answer_to(message, self.data, self.manifest)
        return self.outbox.send(peer, *answer) or [Received(peer=peer, message=message)]


def answer_to(asked: SamplesRequest, data: TrainTest, manifest: Manifest) -> tuple[Samples, Vector]:
    """Return the samples that are asked for; `RemoteProtocolError` if they do not exist, or are too many."""
    part, facts = part_of(data, asked.part), manifest.parts().get(asked.part)
    if part is None or facts is None:
        raise RemoteProtocolError(f"samples of {asked.part!r} are asked for: this run has no such set")
    if len(asked.places) % 4 or not 0 < len(asked.places) // 4 <= facts.in_a_message():
        raise RemoteProtocolError(
            f"samples at {len(asked.places)} bytes of places are asked for: expected 1 to {facts.in_a_message()} "
            "of 4 each"
        )
    places = np.frombuffer(asked.places, "<u4").astype(np.int64)
    if places.max() >= facts.samples:
        raise RemoteProtocolError(f"sample {int(places.max())} is asked for: expected one below {facts.samples}")
    return Samples(part=asked.part, places=asked.places), packed(part, places)
