"""What things are called: each class once in the project, the words of the field, folders neither crowded nor empty."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.architecture.source import Source, Violation

#: Words that only this project used for what the field has a name for, wherever they stand: in code, comments, texts.
PRIVATE_WORDS = re.compile(r"\b(stretch\w*|workplaces?|hurried|(?:take|takes|taken|taking|took) back)\b", re.IGNORECASE)

#: Such words that are plain English in a sentence, and may not be part of a name.
PRIVATE_NAMES = {"stretch", "listed", "unlisted", "merged", "hurried", "hurry", "workplace"}

#: Such words that may not be a class's name.
PRIVATE_CLASSES = {"Places", "Manner", "Assignment", "Again", "Unlisted", "Workplace", "Stretch"}

#: Entries of the fullest folder, and files of the emptiest.
MOST_ENTRIES, FEWEST_FILES = 14, 3


def check_class_names(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find classes that share their name with another."""
    homes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for source in sources.values():
        for node in source.nodes:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append((source.module, node.lineno))
    for name, (first, *others) in homes.items():
        for module, line in others:
            yield Violation(module, line, f"class {name} is defined in {first[0]} too: give it another name")


def check_words(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find words that only this project uses."""
    for source in sources.values():
        for number, line in enumerate(source.text.splitlines(), 1):
            for found in PRIVATE_WORDS.findall(line):
                yield Violation(source.module, number, f"says {found!r}, a private word: use the field's")
        for node in source.nodes:
            for name in _names(node):
                if name in PRIVATE_CLASSES or PRIVATE_NAMES & set(_words(name)):
                    yield Violation(source.module, getattr(node, "lineno", 1), f"{name} is a private word")


def _names(node: ast.AST) -> Iterator[str]:
    """Return the names that a node gives to something."""
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            yield node.name
        case ast.arg():
            yield node.arg
        case ast.Name(ctx=ast.Store()):
            yield node.id
        case ast.Attribute(ctx=ast.Store()):
            yield node.attr


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def folder_faults(package: Path) -> Iterator[str]:
    """Find folders with too many entries, and those with so few that they are a file. Caches do not count."""
    for folder in (package, *(path for path in package.rglob("*") if path.is_dir() and "__" not in path.name)):
        entries = [path for path in folder.iterdir() if not path.name.startswith("__")]
        name = folder.relative_to(package.parent)
        if len(entries) > MOST_ENTRIES:
            yield f"{name} has {len(entries)} entries, above {MOST_ENTRIES}: group what serves one reader"
        if len(entries) < FEWEST_FILES:
            yield f"{name} has {len(entries)} entries, below {FEWEST_FILES}: make it a file, or a part of its user"
