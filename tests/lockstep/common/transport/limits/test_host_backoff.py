"""A host that was cut off is not let in for a while, each time for longer, and others are."""

from lockstep.common.transport.limits.host_backoff import FIRST_S, FORGOTTEN_S, MOST_REMEMBERED, MOST_S, HostBackoff


def seconds_barred(backoff: HostBackoff, host: str, now: float) -> float:
    """Return for how long a host is barred from now on, to an eighth of a second."""
    seconds = 0.0
    while backoff.is_blocked(host, now + seconds):
        seconds += 0.125
    return seconds


def test_a_host_is_barred_from_then_on_and_another_is_not() -> None:
    backoff = HostBackoff()
    assert not backoff.is_blocked("a", 5.0)
    backoff.record("a", 5.0)
    assert seconds_barred(backoff, "a", 5.0) == FIRST_S
    assert not backoff.is_blocked("b", 5.0)


def test_each_time_takes_twice_as_long_up_to_the_most() -> None:
    backoff, now, taken = HostBackoff(), 0.0, []
    for _ in range(6):
        backoff.record("a", now)
        taken.append(seconds_barred(backoff, "a", now))
        now += taken[-1]
    assert taken == [1.0, 2.0, 4.0, MOST_S, MOST_S, MOST_S]


def test_connections_that_were_open_already_are_of_the_same_time() -> None:
    backoff = HostBackoff()
    for hundredth in range(50):
        backoff.record("a", hundredth / 100)
    assert seconds_barred(backoff, "a", 0.0) == FIRST_S


def test_all_is_forgotten_after_a_minute() -> None:
    backoff = HostBackoff()
    backoff.record("a", 0.0)
    backoff.record("a", FIRST_S)
    later = 3 * FIRST_S + FORGOTTEN_S
    backoff.record("a", later)
    assert seconds_barred(backoff, "a", later) == FIRST_S


def test_strangers_fill_no_memory_and_the_last_ones_are_known() -> None:
    backoff = HostBackoff()
    for number in range(2 * MOST_REMEMBERED):
        backoff.record(f"host-{number}", 0.0)
    barred = [number for number in range(2 * MOST_REMEMBERED) if backoff.is_blocked(f"host-{number}", 0.5)]
    assert barred == list(range(MOST_REMEMBERED, 2 * MOST_REMEMBERED))
