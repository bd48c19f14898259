"""A frame is final with the last gradient in it; it is checked before it is sent."""

import numpy as np
import pytest

from lockstep.common.aggregation.layout import LayoutEntry, ParameterLayout
from lockstep.common.aggregation.quantization import RoundingKey, quantization_of
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.numerics.random import Purpose, generator
from lockstep.worker.gradient_sink import GradientSink, NotFiniteError

#: Of sizes 3, 4 and 2 at 0, 3 and 7; statistics at [9, 11).
LAYOUT = ParameterLayout(
    parameters=(LayoutEntry("a", (3,), 0), LayoutEntry("b", (2, 2), 3), LayoutEntry("c", (2,), 7)),
    statistics=(LayoutEntry("d", (2,), 9),),
)
FRAMES = [Slice(0, 4), Slice(4, 8), Slice(8, 11)]
KEY = RoundingKey(0, Node(0, 1))


def sink_of(frames: list[Slice] = FRAMES) -> GradientSink:
    return GradientSink(LAYOUT, frames, quantization_of("float32", 0, LAYOUT.parameter_size))


def pushed(*finished: int, frames: list[Slice] = FRAMES) -> tuple[list[int], list[int]]:
    """Return the frames sent while gradients become final in that order, and those at the end."""
    sink, sums, seen = sink_of(frames), np.arange(11, dtype=np.float32), list[int]()

    def send(start: int, words: Vector) -> None:
        (frame,) = [index for index, each in enumerate(frames) if each.start == start]
        assert words.tobytes() == frames[frame].of(sums).tobytes()
        seen.append(frame)

    for _ in range(2):  # the second micro-batch is like the first
        seen.clear()
        sink.begin(sums, KEY, send)
        on_final = sink.on_final
        assert on_final is not None
        for parameter in finished:
            on_final(parameter)
        meanwhile = len(seen)
        sink.end()
    return seen[:meanwhile], seen[meanwhile:]


def test_sums_that_are_not_sent_are_checked_all_the_same() -> None:
    sink, sums = sink_of(), np.zeros(11, np.float32)
    sink.begin(sums, KEY, None)
    assert sink.on_final is None
    sink.end()
    sums[8] = np.nan
    with pytest.raises(NotFiniteError) as raised:
        sink.end()
    assert (raised.value.micro_batch, raised.value.layer) == (0, "c")


def test_a_frame_that_is_not_finite_is_not_sent() -> None:
    sink, sums, seen = sink_of(), np.zeros(11, np.float32), list[int]()
    sums[3] = np.inf
    sink.begin(sums, KEY, lambda start, words: seen.append(start))
    with pytest.raises(NotFiniteError) as raised:
        sink.end()
    assert (raised.value.layer, raised.value.quantity, seen) == ("b", "gradient", [])
    assert str(raised.value) == "the gradient of micro-batch 0, b"


@pytest.mark.parametrize("is_sending", [False, True])
def test_halves_whose_sum_is_not_finite_are_told_with_the_first_micro_batch_and_the_parameter(is_sending: bool) -> None:
    half, seen = np.zeros(11, np.float32), list[int]()
    half[8] = 3e38

    def send(start: int, words: Vector) -> None:
        seen.append(start)

    node = RoundingKey(0, Node(2, 4))
    with np.errstate(over="ignore"), pytest.raises(NotFiniteError) as raised:
        sink_of().merge(half, half.copy(), np.zeros(11, np.float32), node, send if is_sending else None)
    assert (raised.value.micro_batch, raised.value.layer) == (2, "c")
    assert seen == ([0, 4] if is_sending else [])


@pytest.mark.parametrize("wire", ["int8", "bfloat16"])
def test_sums_are_rounded_to_the_same_bits_whether_they_are_sent_in_frames_or_stay(wire: str) -> None:
    layout = ParameterLayout((LayoutEntry("a", (9000,), 0),), (LayoutEntry("d", (7,), 9000),))
    frames = list(Slice(0, layout.size).cut(4096))
    quantization = quantization_of(wire, 5, layout.parameter_size)
    sums, other = generator(1, Purpose.CANARY).standard_normal((2, layout.size)).astype(np.float32)

    def result(is_sending: bool) -> bytes:
        """Return what comes of a micro-batch, then of that and another one."""
        sent, kept = np.zeros((2, layout.size), np.float32)
        sink, left, total = GradientSink(layout, frames, quantization), sums.copy(), np.empty_like(sums)

        def send(start: int, words: Vector) -> None:
            (frame,) = [each for each in frames if each.start == start]
            quantization.unpack(words, start, frame.of(sent))

        sink.begin(left, RoundingKey(3, Node(0, 1)), send if is_sending else None)
        sink.end()
        kept[:] = sent if is_sending else left
        sink.merge(left, other, total, RoundingKey(3, Node(0, 2)), send if is_sending else None)
        return kept.tobytes() + (sent if is_sending else total).tobytes()

    assert result(is_sending=True) == result(is_sending=False)


@pytest.mark.parametrize(
    ("finished", "meanwhile", "at_the_end"),
    [
        ((2, 1, 0), [2, 1, 0], []),
        ((0, 1, 2), [0, 1, 2], []),
        ((1, 0, 2), [0, 1, 2], []),
        ((2, 0), [2], [0, 1]),
        ((), [], [0, 1, 2]),
    ],
)
def test_a_frame_is_pushed_with_its_last_gradient_or_at_the_end(
    finished: tuple[int, ...], meanwhile: list[int], at_the_end: list[int]
) -> None:
    assert pushed(*finished) == (meanwhile, at_the_end)


def test_a_frame_that_ends_where_a_parameter_begins_does_not_wait_for_it() -> None:
    assert pushed(0, frames=[Slice(0, 3), Slice(3, 7), Slice(7, 11)]) == ([0], [1, 2])


def test_statistics_are_pushed_at_the_end() -> None:
    assert pushed(0, 1, 2, frames=[Slice(0, 9), Slice(9, 11)]) == ([0], [1])
