"""Strangers cost a server a bounded amount: of bytes, of connections, of lines."""

from lockstep.common.transport.limits import (
    FIRST_S,
    FORGOTTEN_S,
    LINES,
    MOST_REMEMBERED,
    MOST_S,
    WINDOW_S,
    Flow,
    HostBackoff,
    IngressQuota,
    RejectionLog,
)
from lockstep.common.transport.port import Limits

LIMITS = Limits(frame_bytes=1000, frames=4, backlog=8)


def flow(received_bytes: int, peer: bytes | None = b"one", descriptor: int = 7) -> Flow:
    return Flow(descriptor=descriptor, peer=peer, received_bytes=received_bytes)


def test_one_whose_messages_come_out_may_send_for_ever() -> None:
    quota = IngressQuota(LIMITS)
    for step in range(1000):
        quota.messages[b"one"] += 1
        assert quota.over_quota([flow(step * quota.allowance)]) == []


def test_one_whose_message_has_no_end_is_found() -> None:
    quota = IngressQuota(LIMITS)
    quota.messages[b"one"] += 1
    assert quota.over_quota([flow(5000)]) == []
    assert quota.over_quota([flow(5000 + quota.allowance)]) == []
    assert quota.over_quota([flow(5001 + quota.allowance)]) == [7]


def test_a_stranger_that_says_nothing_whole_is_found_and_nobody_else() -> None:
    quota = IngressQuota(LIMITS)
    others = [flow(10, b"two", 8)]
    assert quota.over_quota([flow(0, None), *others]) == []
    assert quota.over_quota([flow(quota.allowance + 1, None), *others]) == [7]


def test_who_comes_after_one_has_a_ration_of_its_own() -> None:
    quota = IngressQuota(LIMITS)
    quota.over_quota([flow(0, None)])
    quota.over_quota([])
    assert quota.over_quota([flow(quota.allowance, None)]) == []
    assert quota.over_quota([]) == []
    assert quota.over_quota([flow(quota.allowance + 1, None)]) == [7]


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


def test_a_refusal_is_told_at_once_and_once() -> None:
    rejections = RejectionLog()
    assert not rejections.has_due(100.0)
    rejections.record("refused 10.0.0.7: no key")
    assert rejections.has_due(100.0)
    assert rejections.due(100.0) == ["refused 10.0.0.7: no key"]
    assert rejections.due(100.0) == []
    assert (rejections.count, rejections.has_due(100.0)) == (1, False)


def test_a_flood_is_counted_and_told_in_a_few_lines() -> None:
    rejections, lines, now = RejectionLog(), list[str](), 0.0
    for number in range(10_000):
        now = number * 0.01
        rejections.record(f"refused {number}")
        if rejections.has_due(now):
            lines += rejections.due(now)
    assert rejections.count == 10_000
    assert len(lines) <= (LINES + 1) * (1 + now / WINDOW_S)
    assert lines[:LINES] == [f"refused {number}" for number in range(LINES)]


def test_refusals_for_one_reason_share_a_line() -> None:
    rejections, lines = RejectionLog(), list[str]()
    for number in range(40):
        rejections.record("refused 10.0.0.7: another key")
        if number == 20:
            rejections.record("refused 10.0.0.8: no key")
        if rejections.has_due(number * 0.1):
            lines += rejections.due(number * 0.1)
    assert lines == ["refused 10.0.0.7: another key", "refused 10.0.0.8: no key"]
    assert not rejections.has_due(WINDOW_S - 0.1)
    assert rejections.has_due(WINDOW_S)
    assert rejections.due(WINDOW_S) == ["refused 10.0.0.7: another key (39 times)"]
    assert rejections.count == 41


def test_what_was_not_told_is_told_as_a_number() -> None:
    rejections = RejectionLog()
    for number in range(LINES + 37):
        rejections.record(f"refused {number}")
    assert rejections.due(0.0)[-1] == "37 more connections were refused"
    assert not rejections.has_due(WINDOW_S)


def test_after_a_while_single_ones_are_told_again() -> None:
    rejections = RejectionLog()
    for number in range(LINES):
        rejections.record(f"refused {number}")
    rejections.due(0.0)
    rejections.record("refused another")
    assert not rejections.has_due(WINDOW_S - 1.0)
    assert rejections.has_due(WINDOW_S)
    assert rejections.due(WINDOW_S) == ["refused another"]
