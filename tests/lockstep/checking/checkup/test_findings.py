"""Each check fills in what the texts of its findings name, and no text is without a check."""

import ast
from string import Formatter

import pytest

from lockstep.checking.checkup.target import texts
from tests.architecture.source import ROOT

SOURCES = [path.read_text() for path in (ROOT / "lockstep/checking/checkup").rglob("*.py")]

#: Name -> the facts of each call that gives them by name.
CALLS = [
    (str(node.args[0].value), {str(keyword.arg) for keyword in node.keywords})
    for source in SOURCES
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "found"
    if isinstance(node.args[0], ast.Constant) and all(keyword.arg for keyword in node.keywords)
]


@pytest.mark.parametrize(("name", "facts"), CALLS, ids=[name for name, _ in CALLS])
def test_a_check_gives_the_facts_that_the_texts_name(name: str, facts: set[str]) -> None:
    named = {each for text in texts()[name].values() for _, each, _, _ in Formatter().parse(text) if each}
    assert {each.partition(".")[0] for each in named} == facts


def test_each_text_has_a_check() -> None:
    assert len(CALLS) > 25
    stages = {"name", "route", "firewall", "port", "service", "key", "version"}  # as a connection's diagnosis has them
    assert not [name for name in texts().keys() - stages if not any(f'"{name}"' in source for source in SOURCES)]
