"""Weights are whole once all their frames have come; those of a newer step end the wait."""

from lockstep.common.aggregation.slices import FRAME, Slice
from lockstep.worker.connections import WeightsAssembly


def assembly() -> WeightsAssembly:
    return WeightsAssembly({frame.start: len(frame) for frame in Slice(0, 2 * FRAME + 5).frames()})


def test_the_last_frame_makes_them_whole_whichever_it_is() -> None:
    frames = assembly()
    assert [frames.add(0, start) for start in (FRAME, 2 * FRAME, 0)] == [False, False, True]


def test_a_frame_that_comes_twice_counts_once() -> None:
    frames = assembly()
    assert [frames.add(0, start) for start in (0, 0, FRAME, 0, 2 * FRAME, 0)] == [False] * 4 + [True, False]


def test_a_newer_step_ends_the_wait_for_an_older() -> None:
    frames = assembly()
    frames.add(3, 0)
    frames.add(3, FRAME)
    assert [frames.add(4, start) for start in (0, FRAME)] == [False, False]
    assert not frames.add(3, 2 * FRAME)
    assert frames.add(4, 2 * FRAME)


def test_lengths_are_those_of_the_frames() -> None:
    assert assembly().lengths == {0: FRAME, FRAME: FRAME, 2 * FRAME: 5}
