"""The slices of a run's vector: the part that each server owns, and its initial vectors. Arithmetic only."""

from collections.abc import Iterator

from lockstep.common.aggregation.checksum import checksum_of, window_of
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.shard_messages import MOMENTA, WEIGHTS
from lockstep.ps.shard.shard import Shard

#: A frame of a named vector, with its values.
NamedFrame = tuple[str, Slice, Vector]


def own_part(whole: Shard, owned: Slice) -> Shard:
    """Return a shard of one slice that works on the memory of a shard of the whole."""
    first, second = (owned.of(slot) for slot in whole.slots)
    served = [owned.of(slot) for slot in whole.served]
    part = Shard(
        (first, second), whole.policy, whole.micro_batches, owned.start, (served[0], served[1]), updates=whole.updates
    )
    for name, slot in part.state.items():
        slot[:] = whole.state[name][owned.start : owned.start + slot.size]
    return part


def initial_frames(whole: Shard, owned: Slice) -> Iterator[NamedFrame]:
    """Yield what the shard of a slice is sent when it joins, which may be in the middle of a run."""
    yield from held_frames(whole, owned, whole.updates, has_state=whole.updates > 0)
    momenta = whole.policy.momenta
    for frame in Slice(0, len(momenta)).frames():
        yield MOMENTA, frame, frame.of(momenta)


def fill(shard: Shard, name: str, start: int, values: Vector) -> None:
    """Write a frame that a shard of a slice is sent; `RemoteProtocolError` if the slice has no such place."""
    held: dict[str, tuple[Vector, ...]] = {name: (slot,) for name, slot in shard.state.items()}
    # Both slots, because no earlier weights exist if the current ones turn out to be useless.
    held |= {WEIGHTS: shard.slots, MOMENTA: (shard.policy.momenta,)}
    if name not in held:
        raise RemoteProtocolError(f"a vector {name!r}: expected one of {sorted(held)}")
    first = start - (0 if name == MOMENTA else shard.start)
    part = Slice(first, first + len(values))
    for vector in held[name]:
        if not 0 <= part.start < part.stop <= vector.size:
            raise RemoteProtocolError(f"values {start} to {start + len(values)} of {name!r}: not in this slice")
        part.of(vector)[:] = values


def held_frames(shard: Shard, owned: Slice, updates: int, *, has_state: bool) -> Iterator[NamedFrame]:
    """Yield what a shard holds of a slice after its last update, or the weights after the one before."""
    vectors = [(WEIGHTS, shard.slots[updates % 2], owned.frames())]
    if has_state:
        trained = owned.until(shard.policy.parameter_size).frames()
        vectors += [(name, slot, trained) for name, slot in shard.state.items()]
    for name, vector, frames in vectors:
        for frame in frames:
            yield name, frame, vector[frame.start - shard.start : frame.stop - shard.start]


def checksum_in(shard: Shard, step: int) -> int:
    """Return the checksum, after the update of `step`, of the part of the window that lies in a shard's slice."""
    size = shard.policy.parameter_size + len(shard.policy.momenta)
    window, owned = window_of(step, size), shard.owned
    start, stop = max(window.start, owned.start), min(window.stop, owned.stop)
    return checksum_of(shard.weights[start - owned.start : stop - owned.start]) if start < stop else 0
