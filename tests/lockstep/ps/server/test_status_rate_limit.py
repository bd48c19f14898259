"""Whoever asks is answered, and whoever asks without end so many times a second."""

from lockstep.ps.server.limits import AT_ONCE, PER_SECOND, REMEMBERED, StatusRateLimit


def answers_to(limit: StatusRateLimit, peer: bytes, times: list[float]) -> int:
    """Return how many answers there are to limit at these times, those included that come in between."""
    count = 0
    for now in times:
        count += limit.due(now).count(peer)
        count += limit.ask(peer, now)
    return count


def test_one_that_asks_now_and_then_is_always_answered_at_once() -> None:
    limit = StatusRateLimit()
    assert all(limit.ask(b"a", number / PER_SECOND) for number in range(1000))
    assert limit.deadline() is None


def test_one_that_asks_without_end_is_answered_some_times_a_second() -> None:
    limit = StatusRateLimit()
    answers = answers_to(limit, b"a", [number / 4096 for number in range(10 * 4096)])
    assert 10 * PER_SECOND <= answers <= 10 * PER_SECOND + AT_ONCE + 1


def test_the_last_request_is_always_answered() -> None:
    limit = StatusRateLimit()
    while limit.ask(b"a", 5.0):
        pass
    at = limit.deadline()
    assert at is not None
    assert 5.0 < at <= 5.0 + 1.0 / PER_SECOND
    assert limit.due(5.0) == []
    assert limit.due(at) == [b"a"]
    assert limit.due(at) == []
    assert limit.deadline() is None


def test_another_is_answered_beside_it() -> None:
    limit = StatusRateLimit()
    while limit.ask(b"a", 0.0):
        pass
    assert limit.ask(b"b", 0.0)


def test_strangers_fill_no_memory() -> None:
    limit = StatusRateLimit()
    for number in range(3 * REMEMBERED):
        peer = number.to_bytes(4, "big")
        while limit.ask(peer, 0.0):
            pass
    assert len(limit._left) == len(limit._postponed) == REMEMBERED
