"""Whoever asks is answered, and whoever asks without end so many times a second."""

from ps.server.status_rate_limit import AT_ONCE, PER_SECOND, REMEMBERED, StatusRateLimit


def answers_to(questions: StatusRateLimit, peer: bytes, times: list[float]) -> int:
    """Return how many answers there are to questions at these times, those included that come in between."""
    count = 0
    for now in times:
        count += questions.due(now).count(peer)
        count += questions.ask(peer, now)
    return count


def test_one_that_asks_now_and_then_is_always_answered_at_once() -> None:
    questions = StatusRateLimit()
    assert all(questions.ask(b"a", number / PER_SECOND) for number in range(1000))
    assert questions.deadline() is None


def test_one_that_asks_without_end_is_answered_some_times_a_second() -> None:
    questions = StatusRateLimit()
    answers = answers_to(questions, b"a", [number / 4096 for number in range(10 * 4096)])
    assert 10 * PER_SECOND <= answers <= 10 * PER_SECOND + AT_ONCE + 1


def test_the_last_question_is_always_answered() -> None:
    questions = StatusRateLimit()
    while questions.ask(b"a", 5.0):
        pass
    at = questions.deadline()
    assert at is not None
    assert 5.0 < at <= 5.0 + 1.0 / PER_SECOND
    assert questions.due(5.0) == []
    assert questions.due(at) == [b"a"]
    assert questions.due(at) == []
    assert questions.deadline() is None


def test_another_is_answered_beside_it() -> None:
    questions = StatusRateLimit()
    while questions.ask(b"a", 0.0):
        pass
    assert questions.ask(b"b", 0.0)


def test_strangers_fill_no_memory() -> None:
    questions = StatusRateLimit()
    for number in range(3 * REMEMBERED):
        peer = number.to_bytes(4, "big")
        while questions.ask(peer, 0.0):
            pass
    assert len(questions._left) == len(questions._owed) == REMEMBERED
