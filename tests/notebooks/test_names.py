"""What a notebook imports from the project exists, and so does what it uses of that: a renaming is found at once."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.notebooks.folder import NOTEBOOKS, Notebook, code_cells, read, source
from tests.notebooks.solutions import solutions

#: The project's packages: others have their own tests.
OURS = ("lockstep", "common", "ps", "worker")


def missing(notebook: Notebook) -> list[str]:
    """Return the names of our packages that the code of a notebook uses and that do not exist."""
    texts = [source(cell) for cell in code_cells(notebook)]
    texts += [code for cell in notebook["cells"] for code in solutions(cell)]
    trees = [ast.parse(text) for text in texts]
    known: dict[str, object] = {}
    found = [name for tree in trees for name in _imported(tree, known)]
    return found + [
        ast.unparse(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known
        if not hasattr(known[node.value.id], node.attr)
    ]


def _imported(tree: ast.Module, known: dict[str, object]) -> Iterator[str]:
    """Note the modules and classes of ours that a cell imports; return what could not be imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
            module = import_module(node.module or "")
            for name in node.names:
                value = getattr(module, name.name, None)
                if value is None:
                    yield f"{node.module}.{name.name}"
                elif isinstance(value, ModuleType | type):
                    known[name.asname or name.name] = value


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_names_that_it_uses_exist(path: Path) -> None:
    assert missing(read(path)) == []


def test_a_name_that_does_not_exist_is_found() -> None:
    text = (
        "from lockstep import fit, fitt, nn\nfrom lockstep.api.callbacks import Callback\nnn.Linear\nnn.Linnear(3, 4)"
    )
    cell: dict[str, Any] = {"cell_type": "code", "source": text}
    assert missing({"cells": [cell]}) == ["lockstep.fitt", "nn.Linnear"]
