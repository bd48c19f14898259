"""A frame is final with the last gradient that stands in it."""

import pytest

from common.aggregation.layout import LayoutEntry
from common.aggregation.slices import Slice
from worker.gradient_buckets import GradientBuckets

#: Of sizes 3, 4 and 2 at 0, 3 and 7; statistics at [9, 11).
PARAMETERS = [LayoutEntry("a", (3,), 0), LayoutEntry("b", (2, 2), 3), LayoutEntry("c", (2,), 7)]
FRAMES = [Slice(0, 4), Slice(4, 8), Slice(8, 11)]


def pushed(*finished: int, frames: list[Slice] = FRAMES) -> tuple[list[int], list[int]]:
    """Return the frames pushed while gradients become final in that order, and those at the end."""
    watch, seen = GradientBuckets(PARAMETERS, frames), list[Slice]()
    for _ in range(2):  # the second walk back is like the first
        seen.clear()
        watch.begin(seen.append)
        for parameter in finished:
            watch.finish(parameter)
        meanwhile = len(seen)
        watch.end()
    places = [frames.index(frame) for frame in seen]
    return places[:meanwhile], places[meanwhile:]


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


def test_statistics_are_pushed_at_the_end() -> None:
    assert pushed(0, 1, 2, frames=[Slice(0, 9), Slice(9, 11)]) == ([0], [1])
