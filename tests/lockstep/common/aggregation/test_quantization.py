"""Formats and quantization: values are rounded as each format is defined, and a node's value once and for all.

The cut, the tiling, the order and the way on which values travel do not matter.
"""

import math
import struct
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.quantization import (
    CHUNK,
    EXACT,
    FORMATS,
    INT8_BLOCK,
    LARGEST,
    MOST,
    BFloat16,
    Float16,
    Int8,
    NumberFormat,
    Quantization,
    RoundingKey,
    StochasticRounding,
    quantization_of,
)
from lockstep.common.aggregation.slices import FRAME, Slice, slices_for
from lockstep.common.aggregation.tree import Node, Vector, VectorTree
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.clipping import BLOCK
from tests.lockstep.common.aggregation.test_tree import PoisoningPool, arrivals

#: Names of the types that round.
NAMES = ("float16", "bfloat16", "int8")


def spread(count: int, seed: int = 0, low: int = -9, high: int = 4) -> Vector:
    """Return values of very different sizes, some of them 0."""
    rng = generator(seed, Purpose.CANARY, at=count)
    values = rng.standard_normal(count) * 10.0 ** rng.integers(low, high, count)
    values[rng.random(count) < 0.05] = 0.0
    return values.astype(np.float32)


def of_bits(*bits: int) -> Vector:
    """Return the float32 values that have these bits."""
    return np.array(bits, np.uint32).view(np.float32)


def bits_of(values: Vector) -> list[int]:
    return [int(bits) for bits in values.view(np.uint32)]


def rounded(form: NumberFormat, values: Vector, seed: int = 7, step: int = 0) -> Vector:
    """Return the values as a type rounds them, those of the beginning of a vector."""
    result, rounding = values.copy(), StochasticRounding(seed, step, Node(0, 1), 0)
    for start in range(0, values.size, CHUNK):
        form.round(result[start : start + CHUNK], rounding)
    return result


def sent(form: NumberFormat, values: Vector) -> Vector:
    """Return what comes of rounded values when they have travelled as bytes."""
    data = np.empty(form.size(values.size), np.uint8)
    form.encode(values, data)
    received = np.empty_like(values)
    form.decode(data, received)
    return received


# float16


def converted(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16).astype(np.float32)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.floats(width=32, min_value=-65519, max_value=65519))
def test_it_rounds_as_numpy_converts(value: float) -> None:
    values = np.array([value], np.float32)
    assert rounded(Float16(), values) == converted(values)


def test_every_float16_stays_as_it_is() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = every[np.isfinite(every)]
    assert np.array_equal(rounded(Float16(), finite), finite)


def test_ties_go_to_even_in_every_binade() -> None:
    halves = np.arange(2**15 - 2**10 - 1, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / np.float32(2)
    assert np.array_equal(rounded(Float16(), between), converted(between))


@pytest.mark.parametrize("value", [65_520.0, 7e4, 3e38])
def test_what_is_finite_is_held_at_the_largest(value: float) -> None:
    values = rounded(Float16(), np.array([value, -value, 1.0], np.float32))
    assert values.tolist() == [LARGEST, -LARGEST, 1.0]


def test_infinities_and_nans_stay() -> None:
    values = rounded(Float16(), np.array([np.inf, -np.inf, np.nan, 1e9, 2.0], np.float32))
    assert np.array_equal(values, np.array([np.inf, -np.inf, np.nan, LARGEST, 2.0]), equal_nan=True)
    assert np.array_equal(sent(Float16(), values), values, equal_nan=True)


# bfloat16


def by_definition(value: float) -> float:
    """Round with exact fractions: no bit is touched but to cut the lower half off."""
    if not math.isfinite(value):
        return value
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    below, above = (struct.unpack("<f", struct.pack("<I", edge))[0] for edge in (bits & 0xFFFF0000, _up(bits)))
    beyond = Fraction(2) ** 128 if math.isinf(above) else abs(Fraction(above))
    left, right = abs(Fraction(value)) - abs(Fraction(below)), beyond - abs(Fraction(value))
    is_even = not bits >> 16 & 1
    return float(below if left < right or (left == right and is_even) else above)


def _up(bits: int) -> int:
    return (bits & 0xFFFF0000) + 0x10000


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.floats(width=32, allow_nan=False))
def test_it_rounds_to_the_nearest_and_ties_to_even(value: float) -> None:
    (found,) = rounded(BFloat16(), np.array([value], np.float32))
    expected = by_definition(value)
    assert (float(found), math.copysign(1, found)) == (expected, math.copysign(1, expected))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F808000, 0x3F800000),  # a tie, to even: down
        (0x3F818000, 0x3F820000),  # and up
        (0x3F808001, 0x3F810000),
        (0x80000000, 0x80000000),  # -0
        (0x00000001, 0x00000000),  # the smallest number below half of bfloat16's
        (0x7F7F7FFF, 0x7F7F0000),  # the largest
        (0x7F7F8000, 0x7F800000),  # beyond it: infinite
        (0x7F800000, 0x7F800000),
        (0xFF800000, 0xFF800000),
    ],
)
def test_bits(bits: int, expected: int) -> None:
    assert bits_of(rounded(BFloat16(), of_bits(bits))) == [expected]


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF80FFFF])
def test_a_nan_stays_one_whatever_its_payload(bits: int) -> None:
    values = rounded(BFloat16(), of_bits(bits, 0x3F800000))
    assert np.isnan(values[0])
    assert values[1] == 1.0
    assert np.isnan(sent(BFloat16(), values)[0])


# int8

ONE = Node(0, 1)


def scale_of(block: Vector) -> float:
    """Return the smallest power of two of which no value of the block is more than 127."""
    most = float(np.abs(block).max())
    scale = 2.0 ** math.floor(math.log2(most / MOST))
    while most > MOST * scale:
        scale *= 2.0
    return scale


def test_each_value_becomes_one_of_the_two_steps_beside_it() -> None:
    values = spread(50 * INT8_BLOCK)
    found = rounded(Int8(), values)
    for start in range(0, values.size, INT8_BLOCK):
        block, steps = (
            values[start : start + INT8_BLOCK],
            found[start : start + INT8_BLOCK] / scale_of(values[start : start + INT8_BLOCK]),
        )
        assert np.array_equal(steps, np.rint(steps))
        assert np.abs(steps).max() <= MOST
        exact = block / scale_of(block)
        assert ((steps == np.floor(exact)) | (steps == np.ceil(exact))).all()


@pytest.mark.parametrize("most", [1.0, 127.0, 127.00001, 63.5, 63.500004, 1e-30, 3e38])
def test_the_largest_value_of_a_block_sets_its_scale(most: float) -> None:
    block = np.linspace(0, most, INT8_BLOCK, dtype=np.float32)
    found = rounded(Int8(), block)
    steps = found / scale_of(block)
    assert MOST // 2 <= steps.max() <= MOST
    assert np.array_equal(steps, np.rint(steps))


def test_blocks_have_scales_of_their_own() -> None:
    values = np.ones(3 * INT8_BLOCK, np.float32)
    values[INT8_BLOCK] = 1e6
    found = rounded(Int8(), values)
    assert found[:INT8_BLOCK].tolist() == found[2 * INT8_BLOCK :].tolist() == [1.0] * INT8_BLOCK
    assert set(found[INT8_BLOCK + 1 : 2 * INT8_BLOCK].tolist()) <= {0.0, 2.0**13}


def test_the_mean_over_many_steps_is_the_value() -> None:
    # Most values are small parts of a step: rounding to nearest would lose all of them.
    values = np.full(INT8_BLOCK, 0.003, np.float32)
    values[0], values[1:9] = 1.0, np.linspace(-0.02, 0.02, 8)
    draws = 20_000
    form, total = Int8(), np.zeros(INT8_BLOCK)
    for step in range(draws):
        total += rounded(form, values, step=step)
    step_size = 2.0**-6
    # Five times the largest deviation of a mean of so many numbers that are a step apart.
    assert np.abs(total / draws - values).max() < 5 * 0.5 * step_size / math.sqrt(draws)


def test_one_number_that_is_not_finite_takes_its_block_and_no_other() -> None:
    for bad in (np.inf, -np.inf, np.nan):
        values = spread(3 * INT8_BLOCK)
        values[INT8_BLOCK + 3] = bad
        clean = rounded(Int8(), spread(3 * INT8_BLOCK))
        for found in (rounded(Int8(), values), sent(Int8(), rounded(Int8(), values))):
            assert np.isnan(found[INT8_BLOCK : 2 * INT8_BLOCK]).all()
            assert np.array_equal(found[:INT8_BLOCK], clean[:INT8_BLOCK])
            assert np.array_equal(found[2 * INT8_BLOCK :], clean[2 * INT8_BLOCK :])


def test_the_ends_of_float32_stay_finite() -> None:
    largest, smallest = np.finfo(np.float32).max, np.float32(1e-45)
    values = np.array([largest, -largest, 1.0, *[0.0] * (INT8_BLOCK - 3), smallest, -smallest], np.float32)
    found = rounded(Int8(), values)
    assert found[:2].tolist() == [MOST * 2.0**121, -MOST * 2.0**121]
    assert np.isfinite(found).all()
    assert set(np.abs(found[INT8_BLOCK:]).tolist()) <= {0.0, 2.0**-126}
    assert sent(Int8(), found).tobytes() == found.tobytes()


def test_there_is_no_negative_zero() -> None:
    values = np.array([-0.0, 0.0, -1e-9, 1.0], np.float32)
    found = rounded(Int8(), values)
    assert not np.signbit(found[found == 0.0]).any()
    assert sent(Int8(), found).tobytes() == found.tobytes()


def numbers(seed: int = 1, step: int = 0, node: Node = ONE, start: int = 0, count: int = 64) -> list[int]:
    return [int(number) for number in StochasticRounding(seed, step, node, start).draw(count)]


def test_the_numbers_of_a_value_do_not_depend_on_the_cut() -> None:
    whole = numbers(count=4096 + 70)
    assert numbers(start=4096, count=70) == whole[4096:]
    rounding = StochasticRounding(1, 0, ONE, 0)
    assert [*rounding.draw(32), *rounding.draw(4064), *rounding.draw(70)] == whole


def test_seed_step_and_node_have_numbers_of_their_own() -> None:
    keys = [{}, {"seed": 2}, {"step": 1}, {"node": Node(0, 2)}, {"node": Node(1, 2)}, {"node": Node(2, 3)}]
    assert len({tuple(numbers(**key)) for key in keys}) == len(keys)  # type: ignore[arg-type]


def test_the_numbers_are_even_over_their_range() -> None:
    drawn = np.array(numbers(count=1 << 16))
    assert (drawn % 2 == 1).all()
    counts = np.bincount(drawn >> 12, minlength=16)
    assert np.abs(counts - 4096).max() < 5 * math.sqrt(4096)


# A node of the tree, in any format

#: Trained values and statistics behind them; the vector is a bit more than two blocks of clipping.
TRAINED, SIZE = 2 * BLOCK + 37, 2 * BLOCK + 45

AT = RoundingKey(3, Node(4, 6))


def wire(name: str) -> Quantization:
    return quantization_of(name, 11, TRAINED)


def rounded_at(it: Quantization, values: Vector, at: RoundingKey = AT) -> Vector:
    result = values.copy()
    it.round(result, at)
    return result


@pytest.mark.parametrize("name", NAMES)
def test_what_is_rounded_stays_and_statistics_are_never_touched(name: str) -> None:
    values = spread(SIZE)
    once = rounded_at(wire(name), values)
    assert not np.array_equal(once[:TRAINED], values[:TRAINED])
    assert once[TRAINED:].tobytes() == values[TRAINED:].tobytes()
    assert rounded_at(wire(name), once, RoundingKey(99, Node(0, 1))).tobytes() == once.tobytes()


@pytest.mark.parametrize("name", ["float32", *NAMES])
def test_rounded_values_travel_exactly(name: str) -> None:
    it = wire(name)
    values = rounded_at(it, spread(SIZE))
    for part in (Slice(0, SIZE), Slice(BLOCK, SIZE), Slice(2 * BLOCK, SIZE), Slice(0, BLOCK)):
        words, received = it.pack(part.of(values), part.start), np.full(len(part), np.nan, np.float32)
        assert words.dtype == np.float32
        assert len(words) == it.words(part)
        it.unpack(words, part.start, received)
        assert received.tobytes() == part.of(values).tobytes()


@pytest.mark.parametrize("name", ["float32", *NAMES])
def test_what_is_not_finite_is_seen_in_the_words(name: str) -> None:
    it = wire(name)
    finite = rounded_at(it, spread(SIZE))
    assert it.is_finite(it.pack(finite, 0), 0, SIZE)
    for place in (0, BLOCK + 3, TRAINED - 1, TRAINED, SIZE - 1):
        for value in (np.nan, np.inf, -np.inf):
            values = finite.copy()
            values[place] = value
            assert not it.is_finite(it.pack(values, 0), 0, SIZE), (place, value)


@pytest.mark.parametrize("name", ["float32", *NAMES])
@pytest.mark.parametrize("part", [Slice(0, 1), Slice(0, 3), Slice(0, 100), Slice(2 * BLOCK, SIZE)], ids=str)
def test_words_that_anybody_made_up_are_judged_by_what_they_stand_for(name: str, part: Slice) -> None:
    it, verdicts = wire(name), set()
    for seed in range(200):
        rng = generator(seed, Purpose.CANARY, at=0)
        words = np.zeros(it.words(part), np.float32)
        some = words.view(np.uint8)[: 4 * len(words) - 4 * (seed % 2)]
        some[...] = rng.choice(np.array([0, 1, 63, 124, 127, 128, 247, 248, 249, 255], np.uint8), some.size)
        values = np.zeros(len(part), np.float32)
        with np.errstate(all="ignore"):
            it.unpack(words, part.start, values)
        verdicts.add(it.is_finite(words, part.start, len(part)))
        assert it.is_finite(words, part.start, len(part)) == np.isfinite(values).all()
    assert False in verdicts


@pytest.mark.parametrize(
    ("name", "count", "size"),
    [
        *(("float16", count, 2 * count) for count in (1, 70_001)),
        *(("bfloat16", count, 2 * count) for count in (1, 70_001)),
        *(("int8", count, count + -(-count // 32)) for count in (1, 31, 32, 33, 32_768, 32_769, 100_003)),
    ],
)
def test_a_format_carries_rounded_values_exactly_in_so_many_bytes(name: str, count: int, size: int) -> None:
    values = rounded(FORMATS[name](), spread(count, high=3))
    assert sent(FORMATS[name](), values).tobytes() == values.tobytes()
    assert FORMATS[name]().size(count) == size


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("servers", [1, 2, 3])
def test_a_vector_that_is_cut_is_rounded_as_the_whole(name: str, servers: int) -> None:
    it, left, right = wire(name), spread(SIZE, 1), spread(SIZE, 2)
    whole, parts = np.empty(SIZE, np.float32), np.empty(SIZE, np.float32)
    it.add(left, right, whole, AT)
    for part in slices_for(SIZE, servers):
        it.add(part.of(left), part.of(right), part.of(parts), RoundingKey(AT.step, AT.node, part.start))
    assert parts.tobytes() == whole.tobytes()
    assert rounded_at(it, left + right).tobytes() == whole.tobytes()


@pytest.mark.parametrize("is_left", [True, False])
@pytest.mark.parametrize("name", ["float32", *NAMES])
def test_a_sum_may_be_written_over_either_half(name: str, is_left: bool) -> None:
    it, halves, apart = wire(name), [spread(SIZE, 1), spread(SIZE, 2)], np.empty(SIZE, np.float32)
    it.add(halves[0], halves[1], apart, AT)
    over = halves[0] if is_left else halves[1]
    it.add(halves[0], halves[1], over, AT)
    assert over.tobytes() == apart.tobytes()


def test_int8_draws_anew_for_each_step_and_node() -> None:
    it, values = wire("int8"), spread(SIZE)
    places = [AT, RoundingKey(4, AT.node), RoundingKey(AT.step, Node(4, 5)), RoundingKey(AT.step, Node(5, 6))]
    assert len({rounded_at(it, values, place).tobytes() for place in places}) == 4
    assert rounded_at(quantization_of("int8", 12, TRAINED), values).tobytes() != rounded_at(it, values).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_long_vector_is_rounded_frame_by_frame_as_the_whole(name: str) -> None:
    it, values = quantization_of(name, 5, FRAME + 50_000), spread(FRAME + 50_007)
    whole, frames = rounded_at(it, values), values.copy()
    for frame in reversed(Slice(0, values.size).frames()):
        it.round(frame.of(frames), RoundingKey(AT.step, AT.node, frame.start))
    assert frames.tobytes() == whole.tobytes()


def test_float32_is_left_as_it_is() -> None:
    values = spread(SIZE)
    assert wire("float32") is EXACT
    assert rounded_at(EXACT, values).tobytes() == values.tobytes()
    assert EXACT.pack(values, 0) is values
    assert EXACT.words(Slice(0, SIZE)) == SIZE


@pytest.mark.parametrize(("name", "share"), [("float16", 0.5), ("bfloat16", 0.5), ("int8", 0.27)])
def test_lenets_frame_takes_so_much_of_float32s_bytes(name: str, share: float) -> None:
    lenet = Slice(0, 61_706)
    assert quantization_of(name, 0, len(lenet)).words(lenet) <= share * EXACT.words(lenet) + 1


# Over the tree: values of few elements, since there are many nodes

FEW = 5


def pieces_of(count: int) -> list[Vector]:
    return [spread(FEW, seed=piece, low=-3, high=3) for piece in range(count)]


def node_value(it: Quantization, vectors: Sequence[Vector], node: Node) -> Vector:
    """The definition: a leaf rounded, or the sum of two halves rounded."""
    if len(node) == 1:
        return rounded_at(it, vectors[node.lo], RoundingKey(0, node))
    left, right = (node_value(it, vectors, half) for half in node.halves())
    return rounded_at(it, left + right, RoundingKey(0, node))


def tree_of(it: Quantization, micro_batches: int) -> VectorTree:
    def add(node: Node, left: Vector, right: Vector, out: Vector) -> None:
        it.add(left, right, out, RoundingKey(0, node))

    return VectorTree(micro_batches, PoisoningPool(FEW), add)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(arrivals(), st.sampled_from(NAMES), st.sampled_from(["kept", "own"]))
def test_any_tiling_order_and_duplicates_give_the_same_bits(
    arriving: tuple[int, list[Node]], name: str, how: str
) -> None:
    micro_batches, nodes = arriving
    it, vectors = wire(name), pieces_of(micro_batches)
    tree = tree_of(it, micro_batches)
    for node in nodes:
        value = node_value(it, vectors, node)
        if how == "own":
            own = tree.pool.take()
            own[:] = value
            tree.add_own(node, own)
        else:
            tree.add(node, value)
    assert [term.tobytes() for term in tree.terms()] == [node_value(it, vectors, Node(0, micro_batches)).tobytes()]


@pytest.mark.parametrize("name", NAMES)
def test_rounding_the_whole_alone_gives_bits_that_depend_on_the_tiling(name: str) -> None:
    # The mistake that this room is there to exclude: who adds two micro_batches himself would send another value.
    it, vectors = wire(name), pieces_of(8)
    two_by_two = [
        rounded_at(it, vectors[at] + vectors[at + 1], RoundingKey(0, Node(at, at + 2))) for at in range(0, 8, 2)
    ]
    one_by_one = [rounded_at(it, vector, RoundingKey(0, Node(at, at + 1))) for at, vector in enumerate(vectors)]
    pairs = [one_by_one[at] + one_by_one[at + 1] for at in range(0, 8, 2)]
    assert any(one.tobytes() != other.tobytes() for one, other in zip(two_by_two, pairs, strict=True))
