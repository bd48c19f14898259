"""The code in the folded solutions of a notebook, as cells that can be run where a reader would try them."""

import re
from collections.abc import Iterator
from typing import Any

from tests.notebooks.folder import Notebook, source

_FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)
_CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def solutions(cell: dict[str, Any]) -> list[str]:
    """Return the code of the folded solutions in a cell, in order."""
    if cell["cell_type"] != "markdown":
        return []
    return [code for text in _FOLDED.findall(source(cell)) for code in _CODE.findall(text)]


def with_solutions(notebook: Notebook) -> Notebook:
    """Return the notebook with each solution in a cell of its own below its exercise."""
    return {**notebook, "cells": list(_cells(notebook))}


def _cells(notebook: Notebook) -> Iterator[dict[str, Any]]:
    for cell in notebook["cells"]:
        yield cell
        for number, code in enumerate(solutions(cell), start=1):
            yield _cell(f"{cell['id']}-{number}", code)


def _cell(name: str, code: str) -> dict[str, Any]:
    # In a copy of the names: what a solution defines must not be what makes a later cell work.
    text = f"exec(compile({code!r}, 'solution of {name}', 'exec'), dict(globals()))"
    cell = {"cell_type": "code", "id": name, "metadata": {}, "source": text}
    return {**cell, "execution_count": None, "outputs": []}
