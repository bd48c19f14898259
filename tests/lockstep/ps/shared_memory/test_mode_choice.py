"""Updates are made in the way that was fastest, and the others are tried again now and then."""

from collections import Counter

import pytest

from lockstep.ps.shared_memory.parallel_update import PERIOD, SAMPLES, ModeChoice, UpdateMode

ALL = list(UpdateMode)


def made(choice: ModeChoice, seconds: dict[UpdateMode, float], updates: int) -> list[UpdateMode]:
    """Make updates that take so long; return how each was made."""
    modes = []
    for _ in range(updates):
        mode = choice.choose(ALL)
        choice.record(mode, seconds[mode])
        modes.append(mode)
    return modes


@pytest.mark.parametrize("fastest", ALL)
def test_after_some_updates_of_each_kind_the_fastest_way_stays(fastest: UpdateMode) -> None:
    choice = ModeChoice()
    seconds = {mode: 1.0 if mode is fastest else 2.0 for mode in ALL}
    assert Counter(made(choice, seconds, 3 * (SAMPLES + 1))) == dict.fromkeys(ALL, SAMPLES + 1)
    assert set(made(choice, seconds, 100)) == {fastest}


def test_slower_ways_are_tried_again_and_chosen_once_they_are_faster() -> None:
    choice = ModeChoice()
    slow = {UpdateMode.ALONE: 1.0, UpdateMode.TOGETHER: 2.0, UpdateMode.WORKERS: 3.0}
    tried = Counter(made(choice, slow, 2 * PERIOD))
    assert SAMPLES < tried[UpdateMode.WORKERS] < PERIOD / 20
    fast = {**slow, UpdateMode.WORKERS: 0.5}
    made(choice, fast, PERIOD)
    assert set(made(choice, fast, PERIOD // 2)[50:]) == {UpdateMode.WORKERS}


def test_the_first_update_after_a_change_does_not_count() -> None:
    choice = ModeChoice()
    for mode in ALL:
        choice.record(mode, 1000.0)
        for _ in range(SAMPLES):
            choice.record(mode, 1.0 if mode is UpdateMode.TOGETHER else 2.0)
    assert choice.choose(ALL) is UpdateMode.TOGETHER


def test_only_what_is_possible_is_chosen() -> None:
    choice = ModeChoice()
    made(choice, {UpdateMode.ALONE: 2.0, UpdateMode.TOGETHER: 2.0, UpdateMode.WORKERS: 1.0}, 50)
    assert choice.choose([UpdateMode.ALONE]) is UpdateMode.ALONE
    assert choice.choose(ALL) is UpdateMode.WORKERS


def test_without_measuring_all_take_turns() -> None:
    assert made(ModeChoice(is_measured=False), dict.fromkeys(ALL, 1.0), 6) == 2 * ALL
