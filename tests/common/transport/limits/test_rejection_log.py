"""All refusals are counted, and strangers cannot fill a log."""

from common.transport.limits.rejection_log import LINES, WINDOW_S, RejectionLog


def test_a_refusal_is_told_at_once_and_once() -> None:
    denials = RejectionLog()
    assert not denials.has_news(100.0)
    denials.note("refused 10.0.0.7: no key")
    assert denials.has_news(100.0)
    assert denials.told(100.0) == ["refused 10.0.0.7: no key"]
    assert denials.told(100.0) == []
    assert (denials.count, denials.has_news(100.0)) == (1, False)


def test_a_flood_is_counted_and_told_in_a_few_lines() -> None:
    denials, lines, now = RejectionLog(), list[str](), 0.0
    for number in range(10_000):
        now = number * 0.01
        denials.note(f"refused {number}")
        if denials.has_news(now):
            lines += denials.told(now)
    assert denials.count == 10_000
    assert len(lines) <= (LINES + 1) * (1 + now / WINDOW_S)
    assert lines[:LINES] == [f"refused {number}" for number in range(LINES)]


def test_what_was_not_told_is_told_as_a_number() -> None:
    denials = RejectionLog()
    for number in range(LINES + 37):
        denials.note(f"refused {number}")
    assert denials.told(0.0)[-1] == "37 more connections were refused"
    assert not denials.has_news(WINDOW_S)


def test_after_a_while_single_ones_are_told_again() -> None:
    denials = RejectionLog()
    for _ in range(LINES):
        denials.note("refused one")
    denials.told(0.0)
    denials.note("refused another")
    assert not denials.has_news(WINDOW_S - 1.0)
    assert denials.has_news(WINDOW_S)
    assert denials.told(WINDOW_S) == ["refused another"]
