"""Sends samples to workers that lack the data: knows the data, and no worker. A repeated request is answered again."""

from dataclasses import dataclass

import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.manifest import Manifest, packed, part_of
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.messages import Samples, SamplesRequest


@dataclass(frozen=True)
class SampleSender:
    """The data of a run, for workers that do not have it."""

    data: TrainTest
    manifest: Manifest

    def answer(self, asked: SamplesRequest) -> tuple[Samples, Vector]:
        """Return the samples that are asked for; `RemoteProtocolError` if there are none such, or too many."""
        part, facts = part_of(self.data, asked.part), self.manifest.parts().get(asked.part)
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
