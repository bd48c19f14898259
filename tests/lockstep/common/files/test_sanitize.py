"""What others say is shown as text: it moves no cursor, begins no line, and is as long as we allow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.files.sanitize import cut, indented, one_line

LAW = settings(derandomize=True, deadline=None, max_examples=300)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("worker 3 (host λ, pid 7)", "worker 3 (host λ, pid 7)"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("gone\nerror: forged", "gone\\nerror: forged"),
        ("100%\rdone", "100%\\rdone"),
        ("\u202etxet\u2066", "\\u202etxet\\u2066"),
        ("a\u2028b\u0085c\x00", "a\\u2028b\\x85c\\x00"),
        ("\ud800", "\\ud800"),
        ("[bold red]$x_1$[/]", "[bold red]$x_1$[/]"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, shown: str) -> None:
    assert one_line(text) == shown


@given(st.text(st.characters(), max_size=80), st.integers(3, 40))
@LAW
def test_any_text_becomes_one_printable_line_of_bounded_length(text: str, limit: int) -> None:
    shown = one_line(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert one_line(shown, limit) == shown


@given(st.text(st.characters(), max_size=80))
@LAW
def test_a_text_of_several_lines_begins_none_of_its_own(text: str) -> None:
    lines = indented(text).split("\n")
    assert len(lines) == text.count("\n") + 1
    assert all(not line or (line.startswith("  ") and line.isprintable()) for line in lines)


def test_a_long_text_keeps_its_ends() -> None:
    assert cut("abcdefghij", 5) == "ab…ij"
    assert cut("abcde", 5) == "abcde"
    assert len(one_line("\x1b" * 10**6)) <= 500
