"""A shard divides once (R1), clips, lets statistics follow (R8), and steps just as the optimizer alone would."""

import tracemalloc

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.quantization import EXACT, Quantization, RoundingKey, quantization_of
from lockstep.common.aggregation.slices import FRAME, Slice, slices_for
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.job.optimizer import UpdatePolicy
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.clipping import BLOCK, add_blocks, block_squares, scale_for
from lockstep.common.optim.rules import CHUNK, AdamRule, Rule, SGDRule, SlotSets
from lockstep.common.optim.schedules import Constant, Cosine
from lockstep.ps.shard.shard import Shard

#: Trained values, and statistics behind them.
TRAINED, STATISTICS = 6, 2
SIZE = TRAINED + STATISTICS


def policy_of(rule: Rule, clip_norm: float | None = None, momenta: tuple[float, float] = (0.1, 0.1)) -> UpdatePolicy:
    return UpdatePolicy(
        rules=[(TRAINED, rule)],
        schedule=Cosine(0.5, steps=10),
        clip_norm=clip_norm,
        parameter_size=TRAINED,
        momenta=np.array(momenta, np.float32),
    )


def vectors(count: int, seed: int = 1) -> list[Vector]:
    return list(generator(seed, Purpose.CANARY).standard_normal((count, SIZE), dtype=np.float32))


def shard_of(rule: Rule, clip_norm: float | None = None, micro_batches: int = 4) -> Shard:
    (weights,) = vectors(1, seed=2)
    return Shard((weights, np.full_like(weights, np.nan)), policy_of(rule, clip_norm), micro_batches=micro_batches)


def add(shard: Shard, sums: list[Vector], order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    for piece in order:
        shard.add(Node(piece, piece + 1), sums[piece])


@pytest.mark.parametrize("rule", [SGDRule(momentum=0.9, weight_decay=0.01), AdamRule()])
@pytest.mark.parametrize("clip_norm", [None, 0.25])
def test_an_update_is_the_optimizers_on_the_mean(rule: Rule, clip_norm: float | None) -> None:
    shard = shard_of(rule, clip_norm)
    weights, state = shard.weights.copy(), rule.init(TRAINED)
    for step in range(3):
        sums = vectors(4, seed=step + 10)
        add(shard, sums, (2, 0, 3, 1))
        rate = shard.update(step, divisor=37).rate
        mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / np.float32(37)
        gradient: Vector = mean[:TRAINED].astype(np.float32)
        if clip_norm is not None:
            gradient *= np.float32(scale_for(add_blocks(block_squares(gradient)), clip_norm))
        new = np.empty_like(weights[:TRAINED])
        rule.update(weights[:TRAINED], gradient, SlotSets(state), step, Cosine(0.5, steps=10).rate(step), new)
        weights[:TRAINED] = new
        weights[TRAINED:] += np.float32(0.1) * (mean[TRAINED:] - weights[TRAINED:])
        assert rate == Cosine(0.5, steps=10).rate(step)
        assert shard.weights.tobytes() == weights.tobytes()
        assert shard.digest() == weights_digest(weights)


@pytest.mark.parametrize("rule", [SGDRule(), SGDRule(momentum=0.9, nesterov=True, weight_decay=0.01), AdamRule()])
@pytest.mark.parametrize("clip_norm", [None, 0.25])
@pytest.mark.parametrize("divisor", [0, 37, 64])
def test_sums_that_nobody_else_reads_give_the_same_bits(rule: Rule, clip_norm: float | None, divisor: float) -> None:
    shard, other = shard_of(rule, clip_norm), shard_of(rule, clip_norm)
    for step in range(3):
        (sums,) = vectors(1, seed=step + 10)
        shard.add(Node(0, 4), sums)
        made = shard.update(step, divisor)
        assert other.update_by(sums, step, divisor) == made
        assert other.weights.tobytes() == shard.weights.tobytes()
        assert other.kept_weights(is_diverged=True)[0].tobytes() == shard.kept_weights(is_diverged=True)[0].tobytes()
        assert {name: slot.tobytes() for name, slot in other.state.items()} == {
            name: slot.tobytes() for name, slot in shard.state.items()
        }


def test_the_sum_is_divided_once_by_the_count() -> None:
    shard = shard_of(SGDRule())
    shard.weights[:] = 0.0
    shard.policy = replace(shard.policy, schedule=Constant(1.0))
    # Pieces of 1, 1, 1 and 3 samples: the mean of their means would be another number.
    add(shard, [np.full(SIZE, value, np.float32) for value in (2.0, 2.0, 2.0, 12.0)])
    shard.update(0, divisor=6)
    assert shard.weights[:TRAINED].tolist() == [-3.0] * TRAINED


def test_clipping_limits_the_norm_of_the_gradient_and_leaves_statistics_alone() -> None:
    shard = shard_of(SGDRule(), clip_norm=0.5)
    shard.weights[:] = 0.0
    shard.policy = replace(shard.policy, schedule=Constant(1.0))
    add(shard, [np.full(SIZE, 8.0, np.float32)] * 4)
    shard.update(0, divisor=4)
    np.testing.assert_allclose(np.linalg.norm(shard.weights[:TRAINED]), 0.5, rtol=1e-5)
    np.testing.assert_allclose(shard.weights[TRAINED:], 0.8, rtol=1e-6)


def test_statistics_follow_the_mean_over_samples_by_their_momenta() -> None:
    weights = np.ones(SIZE, np.float32)
    shard = Shard((weights, weights.copy()), policy_of(SGDRule(), momenta=(0.25, 1.0)), micro_batches=4)
    sums = [np.zeros(SIZE, np.float32) for _ in range(4)]
    sums[3][TRAINED:] = 10.0
    add(shard, sums)
    shard.update(0, divisor=2)
    assert shard.weights[TRAINED:].tolist() == [2.0, 5.0]


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_shard_leaves_what_it_is_given_as_it_was(pieces: int) -> None:
    shard = shard_of(SGDRule(), micro_batches=pieces)
    sums = vectors(pieces)
    before = [vector.tobytes() for vector in sums]
    add(shard, sums, order=tuple(range(pieces)))
    shard.update(0, pieces)
    assert [vector.tobytes() for vector in sums] == before


def test_a_shard_takes_arrays_that_are_read_only() -> None:
    shard = shard_of(SGDRule())
    sums = vectors(4)
    for vector in sums:
        vector.flags.writeable = False
    add(shard, sums)
    shard.update(0, 4)
    shard.add(Node(0, 4), sums[0])
    shard.update(1, 4)


def test_memory_does_not_grow_with_the_steps() -> None:
    shard = shard_of(SGDRule())
    for step in range(5):
        add(shard, vectors(4), (3, 1, 0, 2))
        shard.update(step, 4)
    assert len(shard.trees[0].pool.free) <= 4


def test_a_sum_that_is_known_is_not_added_again() -> None:
    one, other = shard_of(SGDRule()), shard_of(SGDRule())
    sums = vectors(4)
    add(one, sums)
    add(other, sums, (0, 1, 1, 0, 2, 3))
    one.update(0, 4)
    other.update(0, 4)
    assert one.digest() == other.digest()


def test_the_weights_before_the_last_update_are_kept() -> None:
    shard = shard_of(SGDRule())
    assert shard.kept_weights(is_diverged=True)[1] == 0
    assert shard.kept_weights(is_diverged=True)[0].tobytes() == shard.weights.tobytes()
    add(shard, vectors(4))
    shard.update(0, 4)
    first = shard.weights.copy()
    add(shard, vectors(4))
    shard.update(1, 4)
    kept, updates = shard.kept_weights(is_diverged=True)
    assert (kept.tobytes(), updates) == (first.tobytes(), 1)
    kept, updates = shard.kept_weights()
    assert (kept.tobytes(), updates) == (shard.weights.tobytes(), 2)
    second = shard.weights.copy()
    add(shard, vectors(4))
    shard.update(2, 4)
    kept, updates = shard.kept_weights(is_diverged=True)
    assert (kept.tobytes(), updates) == (second.tobytes(), 2)


class InterruptedRule(SGDRule):
    """Ctrl-C in the middle of an update."""

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        out[:3] = 99.0
        raise KeyboardInterrupt


def test_an_interrupt_in_the_middle_of_an_update_leaves_whole_weights_to_keep() -> None:
    shard = shard_of(InterruptedRule())
    before = shard.weights.tobytes()
    add(shard, vectors(4))
    with pytest.raises(KeyboardInterrupt):
        shard.update(0, 4)
    kept, updates = shard.kept_weights()
    assert (kept.tobytes(), updates) == (before, 0)


def test_what_overflows_is_left_for_the_next_loss_to_show() -> None:
    shard = shard_of(SGDRule(momentum=0.9))
    huge = np.full(SIZE, 3e38, np.float32)
    add(shard, [huge] * 4)
    shard.update(0, 1)
    assert not np.isfinite(shard.weights).all()
    assert np.isfinite(shard.kept_weights(is_diverged=True)[0]).all()


@pytest.mark.parametrize("micro_batches", [2, 4])  # whose sums overflow in the update, and as they come
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_what_overflows_raises_nothing_wherever_it_does(micro_batches: int, clip_norm: float | None, wire: str) -> None:
    shard = shard_of(SGDRule(momentum=0.9), clip_norm, micro_batches)
    shard.policy = replace(shard.policy, wire=quantization_of(wire, 3, TRAINED))
    shard = Shard(shard.slots, shard.policy, micro_batches)
    words = shard.policy.wire.pack(np.full(SIZE, 3e38, np.float32), 0)
    for piece in range(micro_batches):
        shard.receive(0, Node(piece, piece + 1), words)
    shard.update(0, 1)
    assert not np.isfinite(shard.weights).all()


#: Longer than two frames, with statistics that begin within one and end in the next.
LONG, LONG_TRAINED = 2 * FRAME + 3 * BLOCK + 77, 2 * FRAME - 1234


def long_run(slices: list[Slice], clip_norm: float | None = None) -> bytes:
    """Return the weights after two steps by shards that own these slices."""
    rng = generator(5, Purpose.CANARY)
    first, *sums = rng.standard_normal((9, LONG), dtype=np.float32)
    policy = UpdatePolicy(
        rules=[(TRAINED, AdamRule(weight_decay=0.01))],
        schedule=Constant(0.1),
        clip_norm=clip_norm,
        parameter_size=LONG_TRAINED,
        momenta=rng.random(LONG - LONG_TRAINED, dtype=np.float32),
    )
    shards = [Shard((it.of(first).copy(), np.empty(len(it), np.float32)), policy, 4, it.start) for it in slices]
    for step in range(2):
        for shard, owned in zip(shards, slices, strict=True):
            for piece in (2, 0, 3, 1):
                shard.add(Node(piece, piece + 1), owned.of(sums[4 * step + piece]))
        scale = None
        if clip_norm is not None:
            scale = scale_for(add_blocks(np.concatenate([shard.squares(divisor=7) for shard in shards])), clip_norm)
        for shard in shards:
            shard.update(step, 7, scale)
    return b"".join(shard.weights.tobytes() for shard in shards)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_any_number_of_shards_comes_to_the_same_bits(clip_norm: float | None) -> None:
    whole = long_run([Slice(0, LONG)], clip_norm)
    assert {long_run(slices_for(LONG, servers), clip_norm) for servers in (2, 5, 64)} == {whole}


def test_a_shard_alone_clips_by_itself() -> None:
    (weights, *sums) = vectors(5)
    for scale in (None, scale_for(add_blocks(block_squares(sums_of(sums)[:TRAINED] / np.float32(4))), 0.25)):
        shard = Shard((weights.copy(), weights.copy()), policy_of(SGDRule(), clip_norm=0.25), micro_batches=4)
        add(shard, sums)
        shard.update(0, 4, scale)
        assert shard.digest() == digest_clipped(weights, sums)


def sums_of(sums: list[Vector]) -> Vector:
    return (sums[0] + sums[1]) + (sums[2] + sums[3])


def digest_clipped(weights: Vector, sums: list[Vector]) -> str:
    shard = Shard((weights.copy(), weights.copy()), policy_of(SGDRule(), clip_norm=0.25), micro_batches=4)
    shard.add(Node(0, 4), sums_of(sums))
    shard.update(0, 4)
    return shard.digest()


def test_frames_come_in_any_order_and_in_nodes_of_any_shape() -> None:
    (weights, *sums) = generator(6, Purpose.CANARY).standard_normal((5, LONG), dtype=np.float32)
    policy = replace(policy_of(SGDRule(momentum=0.9)), parameter_size=LONG, momenta=np.empty(0, np.float32))
    whole, framed, received = (Shard((weights.copy(), weights.copy()), policy, micro_batches=4) for _ in range(3))
    whole.add(Node(0, 4), sums_of(sums))
    left, right = sums[0] + sums[1], sums[2] + sums[3]
    # The second frame knows a part of what comes, the third all of it.
    for frame, node, vector in [
        (1, Node(1, 2), sums[1]),
        (2, Node(0, 4), left + right),
        (2, Node(2, 4), right),
        (1, Node(0, 2), left),
        (1, Node(0, 4), left + right),
        (0, Node(2, 4), right),
        (2, Node(0, 2), left),
        (0, Node(0, 2), left),
    ]:
        framed.add_frame(frame, node, framed.frames[frame].of(vector))
        received.receive(frame, node, received.frames[frame].of(vector))
    for shard in (whole, framed, received):
        shard.update(0, 4)
    assert framed.digest() == received.digest() == whole.digest()


#: What travels as eight bits, with random rounding, and weights that are rounded for workers.
INT8, BFLOAT16 = (quantization_of(name, 3, LONG_TRAINED) for name in ("int8", "bfloat16"))


def long_policy(wire: Quantization, wire_weights: Quantization = BFLOAT16) -> UpdatePolicy:
    momenta = np.full(LONG - LONG_TRAINED, 0.25, np.float32)
    return UpdatePolicy(
        rules=[(TRAINED, SGDRule(momentum=0.9))],
        schedule=Constant(0.1),
        clip_norm=None,
        parameter_size=LONG_TRAINED,
        momenta=momenta,
        wire=wire,
        wire_weights=wire_weights,
    )


def long_shard(owned: Slice, policy: UpdatePolicy, micro_batches: int = 4) -> Shard:
    first = generator(5, Purpose.CANARY).standard_normal(LONG, dtype=np.float32)
    return Shard((owned.of(first).copy(), np.zeros(len(owned), np.float32)), policy, micro_batches, owned.start)


def rounded_sum(frame: Slice, sums: list[Vector], step: int) -> Vector:
    """Return a frame's sum over the tree of four, each node rounded by its own key."""
    left, right, whole = (np.empty(len(frame), np.float32) for _ in range(3))
    INT8.add(frame.of(sums[0]), frame.of(sums[1]), left, RoundingKey(step, Node(0, 2), frame.start))
    INT8.add(frame.of(sums[2]), frame.of(sums[3]), right, RoundingKey(step, Node(2, 4), frame.start))
    INT8.add(left, right, whole, RoundingKey(step, Node(0, 4), frame.start))
    return whole


def test_sums_are_rounded_by_step_node_and_place_wherever_a_slice_begins() -> None:
    steps = list(generator(6, Purpose.CANARY).standard_normal((2, 4, LONG), dtype=np.float32))
    for sums in steps:
        for piece in range(4):
            for frame in Slice(0, LONG).frames():
                INT8.round(frame.of(sums[piece]), RoundingKey(0, Node(piece, piece + 1), frame.start))
    expected = long_shard(Slice(0, LONG), long_policy(EXACT))
    shards = [long_shard(owned, long_policy(INT8)) for owned in slices_for(LONG, 2)]
    for step, pieces in enumerate(steps):
        sums = list(pieces)
        whole = np.concatenate([rounded_sum(frame, sums, step) for frame in expected.frames])
        expected.add(Node(0, 4), whole)
        expected.update(step, 7)
        for shard in shards:
            for index, frame in enumerate(shard.frames):
                for piece in (2, 0, 3, 1):
                    words = INT8.pack(frame.of(sums[piece]), frame.start)
                    assert shard.is_finite(index, words)
                    shard.receive(index, Node(piece, piece + 1), words)
            shard.update(step, 7)
    assert b"".join(shard.weights.tobytes() for shard in shards) == expected.weights.tobytes()
    assert b"".join(shard.served_weights.tobytes() for shard in shards) == expected.served_weights.tobytes()
    nearest = expected.weights.copy()
    BFLOAT16.round(nearest, RoundingKey(2, Node(0, 1), 0))
    assert expected.served_weights.tobytes() == nearest.tobytes() != expected.weights.tobytes()


def test_a_value_that_is_not_finite_is_found_among_rounded_sums_and_statistics() -> None:
    shard = long_shard(Slice(0, LONG), long_policy(INT8))
    *_, frame = shard.frames
    for place in (0, len(frame) - 1):
        values = np.zeros(len(frame), np.float32)
        assert shard.is_finite(len(shard.frames) - 1, INT8.pack(values, frame.start))
        values[place] = np.inf
        assert not shard.is_finite(len(shard.frames) - 1, INT8.pack(values, frame.start))


def test_rounded_weights_are_in_the_memory_that_is_given_for_both_slots_from_the_start() -> None:
    slots, memory = vectors(2), vectors(2, seed=9)
    policy = replace(policy_of(SGDRule()), wire_weights=quantization_of("bfloat16", 3, TRAINED))
    shard = Shard((slots[0], slots[1]), policy, 4, rounded=(memory[0], memory[1]))
    assert shard.served[0] is memory[0]
    assert shard.served[1] is memory[1]
    for slot, served in zip(slots, memory, strict=True):
        expected = slot.copy()
        policy.wire_weights.round(expected, RoundingKey(0, Node(0, 1), 0))
        assert served.tobytes() == expected.tobytes()
    add(shard, vectors(4))
    shard.update(0, 4)
    assert shard.served_weights is memory[1]


def test_weights_that_are_served_rounded_are_the_same_in_any_slices_from_the_start() -> None:
    """Statistics, which are not rounded, lie in the last slice."""
    served = [
        b"".join(long_shard(owned, long_policy(EXACT)).served_weights.tobytes() for owned in slices_for(LONG, servers))
        for servers in (1, 2, 3)
    ]
    assert len(set(served)) == 1


def test_weights_are_rounded_for_workers_by_the_number_of_updates_that_led_to_them_and_their_place() -> None:
    # A job's weights are rounded to the nearest; a rounding that is drawn shows by what it is keyed.
    owned = Slice(BLOCK, 3 * BLOCK)
    shard = long_shard(owned, long_policy(EXACT, INT8))
    for updates in range(4):
        expected = shard.weights.copy()
        INT8.round(expected, RoundingKey(updates, Node(0, 1), owned.start))
        assert shard.served_weights.tobytes() == expected.tobytes() != shard.weights.tobytes()
        shard.refresh_served()
        assert shard.served_weights.tobytes() == expected.tobytes()
        shard.add(Node(0, 4), np.full(len(owned), 0.1, np.float32))
        shard.update(updates, 1)


@pytest.mark.parametrize("wire_weights", [BFLOAT16, INT8])
def test_weights_of_a_slot_that_is_not_in_use_may_be_anything(wire_weights: Quantization) -> None:
    shard = long_shard(Slice(0, BLOCK), long_policy(EXACT, wire_weights))
    shard.slots[1][:] = [np.inf, -np.inf, np.nan, 3.4e38] * (BLOCK // 4)
    before = shard.served_weights.tobytes()
    shard.refresh_served()
    assert shard.served_weights.tobytes() == before


def test_an_update_takes_no_memory_of_its_own() -> None:
    shard = long_shard(Slice(0, LONG), long_policy(EXACT), micro_batches=2)
    for piece in range(2):
        shard.add(Node(piece, piece + 1), np.ones(LONG, np.float32))
    tracemalloc.start()
    try:
        shard.update(0, 2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < CHUNK * 4


def test_a_shard_is_whole_once_every_frame_is() -> None:
    shard = long_shard(Slice(0, LONG), long_policy(EXACT))
    for index, frame in enumerate(shard.frames):
        assert not shard.is_whole()
        shard.add_frame(index, Node(0, 4), np.zeros(len(frame), np.float32))
    assert shard.is_whole()


def test_a_weight_that_is_not_finite_is_named_by_its_place_in_the_whole_vector() -> None:
    shard, sums = long_shard(Slice(BLOCK, 3 * BLOCK), long_policy(EXACT)), np.full(2 * BLOCK, 1e30, np.float32)
    shard.add(Node(0, 4), sums)
    shard.update(0, 4)
    assert shard.not_finite is None
    sums[5] = sums[7] = np.nan
    shard.add(Node(0, 4), sums)
    shard.update(1, 4)
    assert shard.not_finite == BLOCK + 5


def test_a_shard_has_the_optimizers_state_of_its_own_trained_values() -> None:
    sizes = [slot.size for slot in long_shard(Slice(BLOCK, 3 * BLOCK), long_policy(EXACT)).state.values()]
    assert sizes == [2 * BLOCK]
    statistics = long_shard(Slice(LONG_TRAINED, LONG), long_policy(EXACT))
    assert [slot.size for slot in statistics.state.values()] == [0]
    statistics.add(Node(0, 4), np.ones(LONG - LONG_TRAINED, np.float32))
    assert statistics.squares(1).size == 0


def test_memory_for_sums_that_were_unpacked_is_used_again() -> None:
    shard = long_shard(Slice(0, BLOCK), long_policy(INT8), micro_batches=2)
    (frame,) = shard.frames
    words = INT8.pack(np.ones(BLOCK, np.float32), frame.start)
    for step in range(2):
        for piece in range(2):
            shard.receive(0, Node(piece, piece + 1), words)
        shard.update(step, 2)
        assert len(shard.trees[0].pool.free) == 2
