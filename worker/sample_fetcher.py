"""Sees to it that the samples of leases are here, where the data is elsewhere: what to ask for, and what came of it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from common.aggregation.tree import Node, Vector
from common.data.manifest import PartName
from common.protocol.messages import Lease, Samples, SamplesRequest, Work
from worker.compute import Compute
from worker.sample_store import Places, SampleStore

#: The set that each kind of work is about.
PARTS: dict[Work, PartName] = {"train": "train", "audit": "train", "validate": "validation", "evaluate": "test"}


@dataclass(frozen=True)
class SampleFetcher:
    """Where a run's samples are kept, and what knows which of them a lease needs."""

    store: SampleStore
    compute: Compute

    def lacked(self, lease: Lease, behind: Iterable[Lease]) -> SamplesRequest | None:
        """Return what is to be asked for before a lease can be computed, None where all of it is here.

        As far as a message takes it, what the leases behind it lack is asked for too: it comes while this is computed.
        """
        part, own = PARTS[lease.work], self._places(lease)
        if self.store.wanted(part, own) is None:
            return None
        others = [self._places(each) for each in behind if each.work == lease.work]
        return self.store.wanted(part, np.concatenate([own, *others]))

    def _places(self, lease: Lease) -> Places:
        return self.compute.samples_of(lease.work, lease.step, Node(lease.lo, lease.hi))

    def take(self, samples: Samples, words: Vector) -> None:
        """Keep samples that came; `RemoteProtocolError` where they are none, `DataError` where there is no room."""
        self.store.put(samples.part, np.frombuffer(samples.places, "<u4").astype(np.int64), words)
