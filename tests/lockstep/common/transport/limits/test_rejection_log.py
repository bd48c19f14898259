"""All refusals are counted, and strangers cannot fill a log."""

from lockstep.common.transport.limits.rejection_log import LINES, WINDOW_S, RejectionLog


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


def test_what_was_not_told_is_told_as_a_number() -> None:
    rejections = RejectionLog()
    for number in range(LINES + 37):
        rejections.record(f"refused {number}")
    assert rejections.due(0.0)[-1] == "37 more connections were refused"
    assert not rejections.has_due(WINDOW_S)


def test_after_a_while_single_ones_are_told_again() -> None:
    rejections = RejectionLog()
    for _ in range(LINES):
        rejections.record("refused one")
    rejections.due(0.0)
    rejections.record("refused another")
    assert not rejections.has_due(WINDOW_S - 1.0)
    assert rejections.has_due(WINDOW_S)
    assert rejections.due(WINDOW_S) == ["refused another"]
