"""Messages that the troubleshooting page quotes are those that the program prints."""

import re

import pytest

from tests.architecture.source import ROOT
from tests.docs.messages import missing_parts

PAGE = (ROOT / "docs/how-to/troubleshooting.md").read_text(encoding="utf-8")

#: Lines of blocks that show what is printed, and messages in the first column of a table.
LINES = re.findall(r"^(?:error|warning|note|notice): .+$", PAGE, re.MULTILINE)
CELLS = [
    quote
    for table in re.findall(r"^\| (?:message|finding) \|.*?(?=\n\n)", PAGE, re.MULTILINE | re.DOTALL)
    for row in table.splitlines()[2:]
    for quote in re.findall(r"`([^`]+)`", row.split("|")[1])
]


@pytest.mark.parametrize("quote", [*LINES, *CELLS])
def test_a_message_that_is_quoted_is_one_that_is_printed(quote: str) -> None:
    text = re.sub(r"^(?:error|warning|note|notice): ", "", quote)
    assert missing_parts(text) == []


def test_there_are_messages_and_one_that_nobody_prints_is_found() -> None:
    assert len(LINES) > 2
    assert len(CELLS) > 10
    assert missing_parts("the moon is made of cheese, since 5 mice said so") == [
        "the moon is made of cheese, since",
        "mice said so",
    ]
