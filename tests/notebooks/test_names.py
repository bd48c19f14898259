"""What a notebook imports from the project exists, and so does what it uses of that: a renaming is found at once."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.notebooks.exercises import exercises
from tests.notebooks.folder import NOTEBOOKS, Notebook, code_cells, read, source

#: The project's package: others have their own tests.
OURS = "lockstep"


def missing(notebook: Notebook) -> list[str]:
    """Return the names of our packages that the code of a notebook uses and that do not exist."""
    texts = [source(cell) for cell in code_cells(notebook)]
    texts += [exercise.right_answer for exercise in exercises(notebook)]
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
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == OURS:
            module = import_module(node.module or "")
            for name in node.names:
                value = getattr(module, name.name, None)
                if value is None:
                    yield f"{node.module}.{name.name}"
                elif isinstance(value, ModuleType | type):
                    known[name.asname or name.name] = value


def private(notebook: Notebook) -> list[str]:
    """Return the modules of ours from which the code of a notebook imports, and which are not the public one."""
    texts = [source(cell) for cell in code_cells(notebook)]
    texts += [exercise.right_answer for exercise in exercises(notebook)]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    return [module for module in modules if module.partition(".")[0] == OURS and module != OURS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_imports_from_the_public_package_alone(path: Path) -> None:
    assert private(read(path)) == []


def test_an_import_from_another_room_is_found() -> None:
    text = (
        "import numpy as np\nimport lockstep.ps.setup\n"
        "from lockstep import fit\nfrom lockstep.common.data.source import load"
    )
    cell: dict[str, Any] = {"cell_type": "code", "source": text, "metadata": {}}
    assert private({"cells": [cell]}) == ["lockstep.common.data.source", "lockstep.ps.setup"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_names_that_it_uses_exist(path: Path) -> None:
    assert missing(read(path)) == []


def test_a_name_that_does_not_exist_is_found() -> None:
    text = (
        "from lockstep import fit, fitt, nn\nfrom lockstep.api.callbacks import Callback\nnn.Linear\nnn.Linnear(3, 4)"
    )
    cell: dict[str, Any] = {"cell_type": "code", "source": text, "metadata": {}}
    assert missing({"cells": [cell]}) == ["lockstep.fitt", "nn.Linnear"]
