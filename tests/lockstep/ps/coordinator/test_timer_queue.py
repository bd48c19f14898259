"""The soonest of many times: against looking through all of them, whatever is done in whatever order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.ps.coordinator.timer_queue import TimerQueue

KEYS, TIMES = st.integers(0, 5), st.integers(0, 9).map(float)

#: A key that is set to a time, one that is dropped (no time), or a look at what is due (no key).
ACTS = st.lists(st.tuples(KEYS, TIMES) | st.tuples(KEYS, st.none()) | st.tuples(st.none(), TIMES), max_size=60)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(acts=ACTS)
def test_it_agrees_with_looking_through_all(acts: list[tuple[int | None, float | None]]) -> None:
    alarms, plain = TimerQueue[int](), dict[int, float]()
    for key, at in acts:
        if key is None:
            assert at is not None
            due = alarms.due(at)
            assert sorted(due) == sorted(key for key, time in plain.items() if time <= at)
            assert [plain[key] for key in due] == sorted(plain[key] for key in due)
        elif at is None:
            alarms.drop(key)
            plain.pop(key, None)
        else:
            alarms.set(key, at)
            plain[key] = at
        assert alarms.times == plain
        assert alarms.soonest() == min(plain.values(), default=None)


def test_the_heap_does_not_grow_with_what_is_put_off() -> None:
    alarms = TimerQueue[str]()
    for at in range(1000):
        for key in "abc":
            alarms.set(key, float(at))
        alarms.soonest()
    assert len(alarms._heap) <= 6
    still = TimerQueue[str]()
    for _ in range(1000):
        still.set("a", 5.0)
    assert len(still._heap) == 1


def test_keys_of_one_time_come_in_the_order_in_which_they_were_set_and_are_not_compared() -> None:
    alarms, keys = TimerQueue[object](), [object() for _ in range(4)]
    for key in keys:
        alarms.set(key, 3.0)
    assert alarms.due(3.0) == keys
