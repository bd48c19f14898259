"""The reading guide is true: its files have the names that it tells to look for, and are as short as it says."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.architecture.source import ROOT

GUIDE = (ROOT / "docs" / "explanation" / "reading-guide.md").read_text(encoding="utf-8")

#: File -> the names that a reader is to look for in it.
STOPS = {
    path: re.findall(r"^- `([\w.]+)`", section, re.MULTILINE)
    for section in re.split(r"^## \d\. ", GUIDE, flags=re.MULTILINE)[1:]
    for path in re.findall(r"^\[([\w/]+\.py)\]", section, re.MULTILINE)
}


def names_in(text: str) -> Iterator[str]:
    """Yield the functions and classes of a module, and the methods as `Class.method`."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))


def test_seven_files_hold_the_idea() -> None:
    assert len(STOPS) == 7
    lines = sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in STOPS)
    assert abs(lines - 1600) < 100


@pytest.mark.parametrize("path", STOPS)
def test_a_file_has_what_a_reader_is_to_look_for(path: str) -> None:
    assert STOPS[path]
    assert set(STOPS[path]) <= set(names_in((ROOT / path).read_text(encoding="utf-8")))
