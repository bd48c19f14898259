"""Slices of a run's vector: what a server works on, is sent and sends is its own part, frame by frame."""

from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.checksum import MODULUS, WINDOW, checksum_after
from lockstep.common.aggregation.quantization import quantization_of
from lockstep.common.aggregation.slices import FRAME, Slice, slices_for
from lockstep.common.aggregation.tree import Vector
from lockstep.common.job.optimizer import UpdatePolicy
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.optim.rules import AdamRule
from lockstep.common.optim.schedules import Constant
from lockstep.common.protocol.shard_messages import MOMENTA, WEIGHTS
from lockstep.ps.shard.partition import (
    NamedFrame,
    checksum_in,
    held_frames,
    initial_frames,
    own_part,
)
from lockstep.ps.shard.shard import Shard

#: More than a frame of trained values, with statistics behind them.
TRAINED = FRAME + 2 * BLOCK + 5
SIZE = TRAINED + 9

#: A slice that begins within a frame of the whole, and has all of the statistics.
LATER = Slice(BLOCK, SIZE)

STATE = ("exp_avg", "exp_avg_sq")


@cache
def vectors() -> list[Vector]:
    return list(generator(5, Purpose.CANARY).standard_normal((2 + len(STATE), SIZE), dtype=np.float32))


def shard_of(owned: Slice, *, updates: int = 1) -> Shard:
    """Return a shard whose vectors, a slice of the same ones, all differ."""
    first, second, *state = vectors()
    policy = UpdatePolicy(
        rules=[(TRAINED, AdamRule())],
        schedule=Constant(0.1),
        clip_norm=None,
        parameter_size=TRAINED,
        momenta=np.linspace(0.1, 0.9, SIZE - TRAINED, dtype=np.float32),
        wire_weights=quantization_of("bfloat16", 3, TRAINED),
    )
    shard = Shard((owned.of(first), owned.of(second)), policy, 4, owned.start, updates=updates)
    for name, values in zip(STATE, state, strict=True):
        shard.state[name][:] = values[owned.start : owned.start + shard.state[name].size]
    return shard


def told(frames: Iterable[NamedFrame]) -> list[tuple[str, Slice, bytes]]:
    return [(name, part, values.tobytes()) for name, part, values in frames]


def parts(name: str, vector: Vector, *slices: Slice) -> list[tuple[str, Slice, bytes]]:
    """Return frames of a whole vector as `told` does."""
    return [(name, part, part.of(vector).tobytes()) for part in slices]


#: The frames of `LATER`, and of its trained values.
FRAMES = [Slice(BLOCK, BLOCK + FRAME), Slice(BLOCK + FRAME, SIZE)]
TRAINED_FRAMES = [FRAMES[0], Slice(BLOCK + FRAME, TRAINED)]


@pytest.mark.parametrize("updates", [0, 1])
def test_a_server_of_a_slice_works_in_the_memory_of_the_whole_on_a_state_of_its_own(updates: int) -> None:
    whole = shard_of(Slice(0, SIZE), updates=updates)
    part = own_part(whole, LATER)
    for mine, all_of_it in zip((*part.slots, *part.served), (*whole.slots, *whole.served), strict=True):
        assert mine.tobytes() == LATER.of(all_of_it).tobytes()
        assert np.shares_memory(mine, all_of_it)
    assert (part.start, part.updates, part.micro_batches, part.policy) == (BLOCK, updates, 4, whole.policy)
    assert list(part.state) == list(STATE)
    for name, slot in part.state.items():
        assert slot.tobytes() == whole.state[name][BLOCK:].tobytes()
        assert not np.shares_memory(slot, whole.state[name])


@pytest.mark.parametrize("updates", [0, 1])
def test_a_server_is_sent_the_weights_the_momenta_and_in_the_middle_of_a_run_the_optimizers_state(
    updates: int,
) -> None:
    whole = shard_of(Slice(0, SIZE), updates=updates)
    weights = parts(WEIGHTS, whole.slots[updates], *FRAMES)
    momenta = parts(MOMENTA, whole.policy.momenta, Slice(0, SIZE - TRAINED))
    state = [frame for name in STATE for frame in parts(name, whole.state[name], *TRAINED_FRAMES)]
    expected = [*weights, *(state if updates else []), *momenta]
    assert told(initial_frames(whole, LATER)) == expected


def test_a_model_without_statistics_has_no_momenta_to_send() -> None:
    whole = shard_of(Slice(0, TRAINED), updates=0)
    whole.policy = replace(whole.policy, momenta=np.empty(0, np.float32))
    assert {name for name, *_ in initial_frames(whole, Slice(0, BLOCK))} == {WEIGHTS}


@pytest.mark.parametrize(
    ("owned", "frames"),
    [
        (LATER, TRAINED_FRAMES),
        (Slice(0, BLOCK), [Slice(0, BLOCK)]),
        (Slice(TRAINED - 1, SIZE), [Slice(TRAINED - 1, TRAINED)]),
        (Slice(TRAINED, SIZE), []),
        (Slice(TRAINED + 1, SIZE), []),
    ],
)
def test_the_optimizers_state_is_of_trained_values_alone(owned: Slice, frames: list[Slice]) -> None:
    assert owned.until(TRAINED).frames() == frames


@pytest.mark.parametrize("updates", [0, 1, 2])
def test_a_server_sends_its_weights_after_any_of_the_last_two_updates_and_its_state(updates: int) -> None:
    whole, shard = shard_of(Slice(0, SIZE)), shard_of(LATER)
    weights = parts(WEIGHTS, whole.slots[updates % 2], *FRAMES)
    state = [frame for name in STATE for frame in parts(name, whole.state[name], *TRAINED_FRAMES)]
    assert told(held_frames(shard, LATER, updates, has_state=True)) == [*weights, *state]
    assert told(held_frames(shard, LATER, updates, has_state=False)) == weights


@pytest.mark.parametrize("servers", [1, 2, 3, 7])
def test_checksums_of_slices_add_up_to_that_of_the_whole(servers: int) -> None:
    whole, shards = shard_of(Slice(0, SIZE)), [shard_of(owned) for owned in slices_for(SIZE, servers)]
    for step in range(-(-SIZE // WINDOW) + 1):
        marks = [checksum_in(shard, step) for shard in shards]
        assert sum(marks) % MODULUS == checksum_after(step, whole.weights)
