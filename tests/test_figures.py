"""The figures of the sources stay within their limits, and each planted thing too much is noticed."""

import pytest

from tests.architecture.figures import (
    MOST_LINES,
    Figure,
    Tree,
    faults,
    figures_of,
    limits,
    start_up,
    started,
)
from tests.architecture.naming import MOST_ENTRIES
from tests.architecture.source import ROOT, sources_of

CLEAN = {
    "lockstep": "import lockstep.ps.a\n",
    "lockstep.cli": "import lockstep.ps.a\n",
    "lockstep.ps": "from lockstep.ps.a import Large\n",
    "lockstep.ps.a": (
        "class Large:\n    x: int\n    def f(self):\n        self.y = 1\n    def g(self): ...\n\n"
        "class Wide(Struct, frozen=True):\n    a: int\n    b: int\n    c: int\n    d: ClassVar[int]\n"
    ),
}
TESTS = {"tests.test_a": "def test_a():\n    assert True\n"}

LONG = "    pass\n" * MOST_LINES
DOCUMENTED = "def f():\n    '''" + "Help.\n" * MOST_LINES + "'''\n"

#: Name of a figure, the module and the text that are planted, and a part of the place that is named.
PLANTED = {
    "a line": ("lines of the product", "lockstep.cli", "import lockstep.ps.a\n\n", ""),
    "a line of a process": ("lines of ps, worker and launch", "lockstep.launch.b", "x = 1\n", ""),
    "a module": ("modules", "lockstep.b", "", ""),
    "one importer": (
        "modules with one importer",
        "lockstep.cli.b",
        "import lockstep.cli.c",
        "cli.c, by lockstep.cli.b",
    ),
    "an empty package": ("empty __init__", "lockstep.b", "\n", "lockstep.b"),
    "a class": ("classes", "lockstep.b", "def f():\n    class B: ...", ""),
    "a small class": (
        "classes with at most 2 fields and no method",
        "lockstep.b",
        "class B(Wide, frozen=True):\n    x: int\n    y: int",
        "lockstep.b:1 B",
    ),
    "a field": (
        "fields of the fullest class that is not a record",
        "lockstep.b",
        "@dataclass\nclass B:\n    x: int\n    def f(self):\n        self.y, self.z = 1, 2",
        "lockstep.b:2 B 3",
    ),
    "a long class": (
        "lines of the longest class",
        "lockstep.b",
        "class B:\n" + LONG,
        f"lockstep.b:1 B {MOST_LINES + 1}",
    ),
    "a long function": (
        "functions of more than 40 lines",
        "lockstep.b",
        "class B:\n  def f():\n" + LONG,
        f"lockstep.b:2 f {MOST_LINES + 1}",
    ),
    "an assertion": (
        "assertions that something is not None, in ps, worker and launch",
        "lockstep.worker.b",
        "def f(x):\n    assert x is not None",
        "lockstep.worker.b:2",
    ),
    "a word": ("words to replace in lockstep.cli", "lockstep.cli.c", "# It is at hand.", "lockstep.cli.c:1: 'at hand'"),
}

#: What no figure but those of lines, modules and classes counts.
HARMLESS = {
    "a table of methods": ("lockstep.b", "class Tensor:\n    def f(self): ...\n" + LONG),
    "a long help": ("lockstep.b", DOCUMENTED),
    "a record with many fields": ("lockstep.b", "class B(Wide):\n    " + "; ".join(f"f{i}: int" for i in range(40))),
    "a frozen record": ("lockstep.b", "@dataclass(frozen=True)\nclass B:\n    x: int\n    y: int\n    z: int"),
    "an enum": ("lockstep.b", "class B(Enum):\n    A = 1"),
    "a variant": ("lockstep.b", "class B(Large):\n    size = 2"),
    "an assertion elsewhere": ("lockstep.b", "assert x is not None"),
    "another assertion": ("lockstep.ps.a", CLEAN["lockstep.ps.a"] + "assert x > 1"),
}


def figures_with(module: str, text: str) -> list[Figure]:
    return figures_of(Tree(sources_of({**CLEAN, "lockstep.cli.c": "x = 1", module: text}), TESTS))


def table_of(figures: list[Figure]) -> dict[str, int]:
    return {figure.name: figure.value for figure in figures}


BEFORE = table_of(figures_with("lockstep.cli.c", "x = 1"))


def test_the_sources_stay_within_their_limits() -> None:
    found = list(faults([*figures_of(Tree.read(ROOT)), start_up()], limits()))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("name", "module", "text", "place"), PLANTED.values(), ids=list(PLANTED))
def test_a_planted_thing_too_much_is_noticed(name: str, module: str, text: str, place: str) -> None:
    (found,) = [text for text in faults(figures_with(module, text), BEFORE) if text.startswith(f"{name}: ")]
    assert f"above its limit of {BEFORE[name]}" in found
    assert place in found


@pytest.mark.parametrize(("module", "text"), HARMLESS.values(), ids=list(HARMLESS))
def test_nothing_else_is_counted(module: str, text: str) -> None:
    grown = {name for name, value in table_of(figures_with(module, text)).items() if value > BEFORE[name]}
    assert grown <= {"lines of the product", "lines of ps, worker and launch", "modules", "classes"}


def test_a_planted_line_of_a_test_is_noticed() -> None:
    figures = figures_of(Tree(sources_of(CLEAN), {**TESTS, "tests.test_b": "x = 1"}))
    assert list(faults(figures, {**table_of(figures), "lines of tests": 2})) == [
        "lines of tests: 3, above its limit of 2"
    ]


def test_a_planted_entry_of_a_full_folder_is_noticed() -> None:
    full = {f"lockstep.cli.m{i}": "x = 1" for i in range(MOST_ENTRIES)}
    name = f"folders with more than {MOST_ENTRIES} entries"
    assert table_of(figures_of(Tree(sources_of({**CLEAN, **full}), TESTS)))[name] == 0
    crowded = {**CLEAN, **full, "lockstep.cli.more.a": "x = 1", "lockstep.cli.more": ""}
    found = list(faults(figures_of(Tree(sources_of(crowded), TESTS)), {name: 0}))
    assert f"{name}: 1, above its limit of 0\n  lockstep.cli {MOST_ENTRIES + 1}" in found


def test_a_planted_module_of_a_start_is_noticed() -> None:
    figure = started(["os", "lockstep", "lockstep.cli"])
    assert list(faults([figure], {figure.name: 1})) == [
        f"{figure.name}: 2, above its limit of 1\n  lockstep\n  lockstep.cli"
    ]


def test_a_limit_belongs_to_a_figure_and_a_figure_may_have_none() -> None:
    assert [text.split(":")[0] for text in faults([Figure("a", 1)], {"b": 1})] == ["b"]
