"""A worker's slice of an update: in the memory of the server and of other workers, part by part.

Each part is made by the arithmetic that the server uses, so that it has the same bits. All of it is made while the
worker has the lock on its own file: by getting that, the server knows that nothing of a slice will be written any more.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.slices import FRAME, Slice
from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import Pair, UpdatePass, UpdateRule, UpdateStep, UpdateVectors
from lockstep.common.errors import SharingError
from lockstep.common.job.optimizer import rule_of
from lockstep.common.protocol.messages import SliceLease, SliceResult, SumsPlace
from lockstep.common.protocol.shared_files import (
    EXACT_WEIGHTS,
    STATE,
    WEIGHTS,
    partial_sums_file,
    partial_sums_shape,
    state_sets,
    state_shape,
    sums_file,
    sums_shape,
    weights_shape,
)
from lockstep.common.protocol.step_board import READ, StepBoard
from lockstep.common.runtime.clock import Clock
from lockstep.common.transport.shared_memory.folder import FileLock, SharedFolder
from lockstep.common.transport.shared_memory.packet_socket import PacketSocket
from lockstep.common.transport.shared_memory.segment import Segment
from lockstep.worker.compute import Compute

#: Called with a slice that was made while its lock is still held: nobody else can make it before this returns.
OnMade = Callable[[SliceLease, SliceResult], None]

#: Values that are updated before the worker looks whether it was interrupted: a millisecond's work.
PART = 2 * FRAME


@dataclass(frozen=True, kw_only=True)
class SharedPlace:
    """Where the memory of a run is, which file in it is this worker's, and what it computes with there."""

    root: Path
    folder: str
    rank: int
    #: What was read there, by which the server knows that we see its memory.
    nonce: str
    #: The weights, read only, and where sums are written.
    slots: Pair
    sums: tuple[Vector, ...]
    #: The head of our file, where others see how far we are, and that of the weights, where the server shows it.
    head: NDArray[np.uint8]
    server_head: NDArray[np.uint8]
    #: A shortcut to the server that was requested, None if there can be none.
    shortcut: PacketSocket | None


@dataclass
class SliceAtHand:
    """A slice that is being updated."""

    lease: SliceLease
    at: UpdateStep
    #: The vectors whose sum is that of the step, each of the whole size.
    terms: Sequence[Vector]
    #: The parts that are still to be made.
    parts: list[Slice]
    began: float
    #: The first weight that is not finite so far.
    not_finite: int | None = None


@dataclass
class SliceUpdater:
    """Makes slices of updates in shared memory; maps what they need, and keeps it mapped."""

    compute: Compute
    place: SharedPlace
    clock: Clock
    #: Values of a part.
    part: int = PART
    #: Which memory holds the weights, as leases name it.
    generation: int = 0
    _at_hand: SliceAtHand | None = None
    _lock: FileLock | None = None
    #: None before the first slice in this memory.
    _updating: UpdatePass | None = None
    #: The files of sums that were mapped, by whose they are, and by the slot if they are the server's.
    _sums: dict[tuple[int | None, int], Segment] = field(default_factory=dict)
    #: Where the server shows how far it is.
    _server: StepBoard = field(init=False)

    def __post_init__(self) -> None:
        self._server = StepBoard.of(self.place.server_head)

    def advance(self, lease: SliceLease, on_made: OnMade = lambda lease, result: None) -> SliceResult | None:
        """Make the next part of a slice, or begin with it; return what became of it once it is over."""
        if self._at_hand is None and not self._begin(lease):
            return SliceResult(number=lease.number, is_done=False)
        return self._advance(on_made)

    def abandon(self) -> None:
        """Make nothing more of the slice at hand, if there is one."""
        if self._at_hand is not None:
            self._at_hand = None
            self._own_lock().release()

    def _begin(self, lease: SliceLease) -> bool:
        """Get ready for a slice; return False if it cannot be made, or is not to be made any more."""
        try:
            self.follow(lease.memory)
            if lease.memory < self.generation:
                return False  # the run has left that memory
            terms = [self._sums_at(place, lease.terms) for place in lease.terms]
            updating = self._updating or self._map()
            lock = self._own_lock()
        except SharingError:
            return False
        if not lock.acquire():
            return False
        at = UpdateStep(
            step=lease.step,
            count=lease.count,
            rate=lease.rate,
            scale=lease.scale,
            reads=lease.reads,
            writes=1 - lease.reads,
        )
        parts = list(Slice(lease.start, lease.stop).cut(self.part))
        self._updating, self._at_hand = updating, SliceAtHand(lease, at, terms, parts, self.clock.now())
        return True

    def _advance(self, on_made: OnMade) -> SliceResult | None:
        slice_, updating = self._at_hand, self._updating
        assert slice_ is not None
        assert updating is not None  # there is a slice at hand
        place = updating.run(slice_.at, slice_.parts.pop(0), [slice_.terms])
        if slice_.not_finite is None:
            slice_.not_finite = place
        if slice_.parts:
            return None
        self._at_hand = None
        result = SliceResult(
            number=slice_.lease.number,
            is_done=True,
            not_finite=slice_.not_finite,
            seconds=max(0.0, self.clock.now() - slice_.began),
        )
        on_made(slice_.lease, result)
        self._own_lock().release()
        return result

    def _own_lock(self) -> FileLock:
        if self._lock is None:
            with self._joined() as folder:
                self._lock = folder.lock_of(sums_file(self.place.rank))
        return self._lock

    def _joined(self) -> closing[SharedFolder]:
        return closing(SharedFolder.join(self.place.root, self.place.folder))

    def _sums_at(self, place: SumsPlace, needed: Sequence[SumsPlace]) -> Vector:
        """Return sums, mapping their file if it is not."""
        vectors = self.segment_at(place, needed).vectors
        slot = 0 if place.rank is None else place.slot
        if slot >= len(vectors):
            raise SharingError(f"sums in slot {slot}: a worker has {len(vectors)}")
        return vectors[slot]

    def segment_at(self, place: SumsPlace, needed: Sequence[SumsPlace]) -> Segment:
        """Return a file of sums, mapped if it was not; forget those of others then, who may be gone."""
        key = (None, place.slot) if place.rank is None else (place.rank, 0)
        if key not in self._sums:
            kept = {(one.rank, one.slot if one.rank is None else 0) for one in needed}
            self._sums = {one: segment for one, segment in self._sums.items() if one in kept}
            self._sums[key] = self._attach_sums(place)
        return self._sums[key]

    def _attach_sums(self, place: SumsPlace) -> Segment:
        size = self.compute.layout.size
        with self._joined() as folder:
            if place.rank is None:
                return folder.attach(partial_sums_file(place.slot), partial_sums_shape(size))
            return folder.attach(sums_file(place.rank), sums_shape(size))

    def _map(self) -> UpdatePass:
        """Map the vectors in shared memory, and return what updates them."""
        compute, layout = self.compute, self.compute.layout
        rule, shape = rule_of(compute.job), weights_shape(layout.size)
        names = list(rule.init(0))
        with self._joined() as folder:
            first, second = folder.attach(WEIGHTS, shape, is_writable=True).vectors
            weights = served = first, second
            if not compute.wire_weights.is_exact:
                first, second = folder.attach(EXACT_WEIGHTS, shape, is_writable=True).vectors
                weights = first, second
            state = folder.attach(STATE, state_shape(names, layout.parameter_size), is_writable=True).vectors
        made = UpdateRule(
            rule=rule,
            parameter_size=layout.parameter_size,
            momenta=compute.model.momenta(),
            wire_weights=compute.wire_weights,
        )
        vectors = UpdateVectors(weights=weights, served=served, slots=state_sets(names, state))
        return UpdatePass(made, vectors, [Slice(0, layout.size)])

    def read_steps(self) -> int:
        """Return of how many steps the server has read what workers show."""
        return self._server.count(READ)

    def weights_after(self, step: int) -> Vector:
        """Return the weights after the update of a step, of which a slice was made here."""
        assert self._updating is not None  # by which it was made
        return self._updating.vectors.weights[(step + 1) % 2]

    def follow(self, generation: int) -> None:
        """Compute with the weights in the memory that a lease names; `SharingError` if it cannot be mapped."""
        if generation <= self.generation:
            return
        with self._joined() as folder:
            segment = folder.attach(WEIGHTS, weights_shape(self.compute.layout.size))
        first, second = segment.vectors
        self.compute.move((first, second))
        self._server = StepBoard.of(segment.head)
        self.generation, self._updating = generation, None

    def close(self) -> None:
        """Let go of the lock, as the system does when a process ends."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
