"""Whoever asks now and then is answered each time, and whoever asks without end some times a second."""

from ps.questions import AT_ONCE, PER_SECOND, REMEMBERED, Questions


def test_one_that_asks_now_and_then_is_always_answered() -> None:
    questions = Questions()
    assert all(questions.may_ask(b"a", number / PER_SECOND) for number in range(1000))


def test_one_that_asks_without_end_is_answered_some_times_a_second() -> None:
    questions = Questions()
    answers = sum(questions.may_ask(b"a", number / 1024) for number in range(10 * 1024))
    assert abs(answers - AT_ONCE - 10 * PER_SECOND) <= 1


def test_another_is_answered_beside_it() -> None:
    questions = Questions()
    while questions.may_ask(b"a", 0.0):
        pass
    assert questions.may_ask(b"b", 0.0)
    assert questions.may_ask(b"a", 1.0)


def test_strangers_fill_no_memory() -> None:
    questions = Questions()
    for number in range(3 * REMEMBERED):
        questions.may_ask(number, 0.0)
    assert len(questions._left) == REMEMBERED
