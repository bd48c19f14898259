"""How much there is: figures of a tree of sources, some of which have a limit that they must not pass.

What a reader has to hold in mind at once is limited: fields, functions, folders, modules. The command `scripts/figures`
prints how much there is in all.
"""

import ast
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lockstep.common.runtime.environment import child_environment
from tests.architecture.direction import edges_of
from tests.architecture.naming import MOST_ENTRIES
from tests.architecture.source import PACKAGES, ROOT, Source, is_within, read_tree, sources_of
from tests.docs.words import complaints_of_source

#: The one table of limits: name of a figure -> the largest value that it may have.
LIMITS = Path(__file__).with_name("limits.json")

#: The folders of the processes of a run.
PROCESSES = ("lockstep.ps", "lockstep.worker", "lockstep.launch")

#: Classes whose methods are one table, as long as there are operations, values of a job or rules of scheduling.
TABLES_OF_METHODS = ("Tensor", "Objective", "Scheduler")

#: A class with one of these bases holds values, and decides nothing.
RECORDS = frozenset({"Struct", "NamedTuple", "TypedDict", "Protocol", "Enum", "IntEnum", "StrEnum", "Flag"})

#: A class whose fields others demand: scikit-learn reads parameters and results from attributes of an estimator. Its
#: pickle is to hold arrays, texts and numbers, so no parts of ours.
FLAT = "LockstepEstimator"

#: Lines of the longest function that is still one thought.
MOST_LINES = 40

#: Fields of a class that could be an argument, or a part of its user.
FEW_FIELDS = 2


@dataclass(frozen=True)
class Figure:
    """A number, and the places that it counts. If it measures one place, that is the first."""

    name: str
    value: int
    places: tuple[str, ...] = ()
    is_of_one_place: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"


@dataclass(frozen=True)
class Tree:
    """The sources of the product, and the texts of its tests, by the names of their modules."""

    product: Mapping[str, Source]
    tests: Mapping[str, str]

    def classes(self) -> Iterator[tuple[Source, ast.ClassDef]]:
        """Yield each class with its module."""
        for source in self.product.values():
            yield from ((source, node) for node in source.nodes if isinstance(node, ast.ClassDef))

    @classmethod
    def read(cls, root: Path) -> "Tree":
        """Read the sources in a folder."""
        return cls(sources_of(read_tree(root)), read_tree(root, ["tests"]))

    def packages(self) -> set[str]:
        """Return the modules that have others below them."""
        return {module.rpartition(".")[0] for module in self.product}


def figures_of(tree: Tree) -> list[Figure]:
    """Return the figures of a tree, in the order of the table that is printed."""
    return [*(measure(name, tree) for name, measure in MEASURES.items()), *_words(tree)]


def start_up() -> Figure:
    """Count the modules of the product that a process of a worker has loaded when its command begins."""
    code = "import sys, lockstep.cli.machines.worker; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=child_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return started(loaded.stdout.split())


def started(loaded: Iterable[str]) -> Figure:
    """Return the figure for these loaded modules."""
    return _counted(
        "modules of the product that a worker loads", [name for name in loaded if name.startswith(PACKAGES)]
    )


def limits() -> dict[str, int]:
    """Read the table of limits."""
    table: dict[str, int] = json.loads(LIMITS.read_text(encoding="utf-8"))
    return table


def faults(figures: list[Figure], table: Mapping[str, int]) -> Iterator[str]:
    """Yield figures above their limits, with all places that they count; and limits of no figure."""
    for figure in figures:
        if figure.value > table.get(figure.name, figure.value):
            yield "\n  ".join([f"{figure}, above its limit of {table[figure.name]}", *figure.places])
    for name in sorted(set(table) - {figure.name for figure in figures}):
        yield f"{name}: a limit of {LIMITS.name} that no figure has"


def _lines(name: str, modules: Mapping[str, str]) -> Figure:
    return Figure(name, sum(len(text.splitlines()) for text in modules.values()))


def _product_lines(name: str, tree: Tree) -> Figure:
    return _lines(name, {module: source.text for module, source in tree.product.items()})


def _lines_of_processes(name: str, tree: Tree) -> Figure:
    texts = {module: source.text for module, source in tree.product.items()}
    return _lines(name, {module: text for module, text in texts.items() if _is_of_process(module)})


def _test_lines(name: str, tree: Tree) -> Figure:
    return _lines(name, tree.tests)


def _is_of_process(module: str) -> bool:
    return any(is_within(module, folder) for folder in PROCESSES)


def _counted(name: str, places: list[str]) -> Figure:
    return Figure(name, len(places), tuple(sorted(places)))


def _largest(name: str, sizes: Mapping[str, int]) -> Figure:
    """Return the largest of the sizes, with the places of the ten that are the largest."""
    order = sorted(sizes.items(), key=lambda size: (-size[1], size[0]))[:10]
    return Figure(name, order[0][1] if order else 0, tuple(f"{place} {size}" for place, size in order), True)


def _modules(name: str, tree: Tree) -> Figure:
    return Figure(name, len(tree.product))


def _empty_packages(name: str, tree: Tree) -> Figure:
    return _counted(name, [module for module, source in tree.product.items() if not source.text.strip()])


def _only_importers(name: str, tree: Tree) -> Figure:
    importers: dict[str, set[str]] = defaultdict(set)
    for edge in edges_of(tree.product):
        importers[edge.imported].add(edge.importer)
    alone = {module: found for module, found in importers.items() if len(found) == 1 and module not in tree.packages()}
    return _counted(name, [f"{module}, by {importer}" for module, (importer,) in alone.items()])


def _full_folders(name: str, tree: Tree) -> Figure:
    entries: dict[str, set[str]] = defaultdict(set)
    for module in tree.product:
        folder, _, entry = module.rpartition(".")
        if folder and not entry.startswith("__"):
            entries[folder].add(entry)
    return _counted(name, [f"{folder} {len(each)}" for folder, each in entries.items() if len(each) > MOST_ENTRIES])


def _classes(name: str, tree: Tree) -> Figure:
    return Figure(name, sum(1 for _ in tree.classes()))


def _fullest(name: str, tree: Tree) -> Figure:
    records = {*_records(tree), FLAT}
    sizes = {_place(source, node): len(_fields(node)) for source, node in tree.classes() if node.name not in records}
    return _largest(name, sizes)


def _longest(name: str, tree: Tree) -> Figure:
    found = [(source, node) for source, node in tree.classes() if node.name not in TABLES_OF_METHODS]
    return _largest(name, {_place(source, node): _length(node) for source, node in found})


def _small_classes(name: str, tree: Tree) -> Figure:
    records = _records(tree)
    found = []
    for source, node in tree.classes():
        has_methods = any(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body)
        # A variant of a class with methods has theirs; the members of an enum are no fields.
        is_plain = _bases(node) <= records and not any(base.endswith(("Enum", "Flag")) for base in _bases(node))
        if is_plain and not has_methods and len(_fields(node)) <= FEW_FIELDS:
            found.append(_place(source, node))
    return _counted(name, found)


def _long_functions(name: str, tree: Tree) -> Figure:
    found = []
    for source in tree.product.values():
        for node in source.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = _length(node) - _lines_of_docstring(node)
                if lines > MOST_LINES:
                    found.append(f"{_place(source, node)} {lines}")
    return _counted(name, found)


def _assertions(name: str, tree: Tree) -> Figure:
    found = []
    for source in tree.product.values():
        if _is_of_process(source.module):
            nodes = [
                node for node in source.nodes if isinstance(node, ast.Assert) and "is not None" in ast.unparse(node)
            ]
            found += [f"{source.module}:{node.lineno}: {ast.unparse(node)}" for node in nodes]
    return _counted(name, found)


def _words(tree: Tree) -> Iterator[Figure]:
    """Yield for each folder of the product the words of docstrings, comments and messages that are to be replaced."""
    found: dict[str, list[str]] = defaultdict(list)
    packages = tree.packages()
    for module, source in tree.product.items():
        folder = ".".join(module.split(".")[:2])
        found[folder if folder in packages else "lockstep"] += complaints_of_source(source.text, module)
    yield from (_counted(f"words to replace in {folder}", places) for folder, places in found.items())


def _records(tree: Tree) -> set[str]:
    """Return the names of classes that hold values: frozen dataclasses, structs, enums, ports and their subclasses."""
    found, bases = set(RECORDS), {node.name: _bases(node) for _, node in tree.classes()}
    found |= {node.name for _, node in tree.classes() if _is_frozen(node)}
    while more := {name for name, above in bases.items() if name not in found and found & above}:
        found |= more
    return found


def _bases(node: ast.ClassDef) -> set[str]:
    names = (ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases)
    return {name.rpartition(".")[2] for name in names}


def _is_frozen(node: ast.ClassDef) -> bool:
    return any("dataclass" in (text := ast.unparse(each)) and "frozen=True" in text for each in node.decorator_list)


def _fields(node: ast.ClassDef) -> set[str]:
    """Return what a class declares in its body, and what its methods assign to `self`."""
    declared = {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and "ClassVar" not in ast.unparse(each.annotation)
    }
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    return declared | {
        below.attr
        for method in methods
        for below in ast.walk(method)
        if isinstance(below, ast.Attribute)
        and isinstance(below.ctx, ast.Store)
        and isinstance(below.value, ast.Name)
        and below.value.id == "self"
    }


def _lines_of_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how long the docstring is: that of a command is its help, and that of `fit` explains each argument."""
    return _length(node.body[0]) if ast.get_docstring(node, clean=False) is not None else 0


def _length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _place(source: Source, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return f"{source.module}:{node.lineno} {node.name}"


#: Names of the figures, and how each is measured.
MEASURES: Mapping[str, Callable[[str, Tree], Figure]] = {
    "lines of the product": _product_lines,
    "lines of tests": _test_lines,
    "lines of ps, worker and launch": _lines_of_processes,
    "modules": _modules,
    "modules with one importer": _only_importers,
    "empty __init__": _empty_packages,
    f"folders with more than {MOST_ENTRIES} entries": _full_folders,
    "classes": _classes,
    f"classes with at most {FEW_FIELDS} fields and no method": _small_classes,
    "fields of the fullest class that is not a record": _fullest,
    "lines of the longest class": _longest,
    f"functions of more than {MOST_LINES} lines": _long_functions,
    "assertions that something is not None, in ps, worker and launch": _assertions,
}
