"""A host that was cut off is not let in for a while, each time for longer, and others are."""

from common.transport.limits.host_backoff import FIRST_S, FORGOTTEN_S, MOST_S, REMEMBERED, HostBackoff


def seconds_barred(penalties: HostBackoff, host: str, now: float) -> float:
    """Return for how long a host is barred from now on, to an eighth of a second."""
    seconds = 0.0
    while penalties.bars(host, now + seconds):
        seconds += 0.125
    return seconds


def test_a_host_is_barred_from_then_on_and_another_is_not() -> None:
    penalties = HostBackoff()
    assert not penalties.bars("a", 5.0)
    penalties.book("a", 5.0)
    assert seconds_barred(penalties, "a", 5.0) == FIRST_S
    assert not penalties.bars("b", 5.0)


def test_each_time_takes_twice_as_long_up_to_the_most() -> None:
    penalties, now, taken = HostBackoff(), 0.0, []
    for _ in range(6):
        penalties.book("a", now)
        taken.append(seconds_barred(penalties, "a", now))
        now += taken[-1]
    assert taken == [1.0, 2.0, 4.0, MOST_S, MOST_S, MOST_S]


def test_connections_that_were_open_already_are_of_the_same_time() -> None:
    penalties = HostBackoff()
    for hundredth in range(50):
        penalties.book("a", hundredth / 100)
    assert seconds_barred(penalties, "a", 0.0) == FIRST_S


def test_all_is_forgotten_after_a_minute() -> None:
    penalties = HostBackoff()
    penalties.book("a", 0.0)
    penalties.book("a", FIRST_S)
    later = 3 * FIRST_S + FORGOTTEN_S
    penalties.book("a", later)
    assert seconds_barred(penalties, "a", later) == FIRST_S


def test_strangers_fill_no_memory_and_the_last_ones_are_known() -> None:
    penalties = HostBackoff()
    for number in range(2 * REMEMBERED):
        penalties.book(f"host-{number}", 0.0)
    barred = [number for number in range(2 * REMEMBERED) if penalties.bars(f"host-{number}", 0.5)]
    assert barred == list(range(REMEMBERED, 2 * REMEMBERED))
