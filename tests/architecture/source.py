"""A tree of Python sources as data: module name -> text. Knows no rule."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

#: The packages of the wheel.
PACKAGES = ("lockstep",)

#: The folder that holds the packages.
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, order=True)
class Violation:
    """What is wrong, and where."""

    module: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Import:
    """One name that an import statement brings in; `name` is None for `import module`."""

    module: str
    name: str | None
    line: int
    #: Number of leading dots.
    level: int = 0


@dataclass(frozen=True)
class Source:
    """The text of one module."""

    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, self.module)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """All nodes of the tree, walked once for all rules."""
        return tuple(_walk(self.tree))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """All imports: nested ones and those for type checkers count as others do."""
        return tuple(found for node in self.nodes for found in _imports(node))

    @cached_property
    def bindings(self) -> dict[str, str]:
        """What the names that imports bind stand for: `np` -> `numpy`, `environ` -> `os.environ`."""
        bound: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.partition(".")[0]
                    bound[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom) and node.module:
                bound.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        return bound

    def dotted(self, node: ast.AST) -> str:
        """Return what `np.random.normal` or `normal` stands for, with imports seen through; '' where it is no name."""
        if isinstance(node, ast.Name):
            return self.bindings.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            owner = self.dotted(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        return ""

    def is_dataclass(self, decorator: ast.AST) -> bool:
        """Tell whether a decorator makes a dataclass."""
        name = self.dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)
        return name == "dataclasses.dataclass"


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all below it, in no order: a third of the time of `ast.walk`."""
    left = [node]
    while left:
        yield (node := left.pop())
        for value in vars(node).values():
            if isinstance(value, ast.AST):
                left.append(value)
            elif isinstance(value, list):
                left.extend(each for each in value if isinstance(each, ast.AST))


def _imports(node: ast.AST) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, None, node.lineno)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield Import(node.module or "", alias.name, node.lineno, node.level)


def sources_of(texts: Mapping[str, str]) -> dict[str, Source]:
    """Return the sources by module name."""
    return {module: source_of(module, text) for module, text in texts.items()}


@cache
def source_of(module: str, text: str) -> Source:
    """Return the source of a module: always the same, so that a text is parsed once for all rules of a process."""
    return Source(module, text)


def read_tree(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the text of every module of the packages in the folder."""
    texts = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            texts[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return texts


def is_within(module: str, package: str) -> bool:
    """Tell whether the module is the package or lies in it."""
    return module == package or module.startswith(package + ".")
