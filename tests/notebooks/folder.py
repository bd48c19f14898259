"""The labs as files: which there are, how one is read and written, and what its sources are. Runs nothing."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.architecture.source import ROOT

FOLDER = ROOT / "notebooks"

#: Every notebook of the folder: a new one needs no line here.
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

#: Where a saved notebook says of which sources its outputs are.
DIGEST = "sources_sha256"

#: A notebook as JSON: what nbformat calls version 4.
Notebook = dict[str, Any]


def read(path: Path) -> Notebook:
    """Return a notebook."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def write(path: Path, notebook: Notebook) -> None:
    """Write a notebook as Jupyter does, so that saving it there changes no line."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def source(cell: dict[str, Any]) -> str:
    """Return a cell's text, which a file may hold as one string or as lines."""
    return "".join(cell["source"])


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    """Return the cells that are run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(output: dict[str, Any]) -> str:
    """Return the texts of an output, pictures left out."""
    data = output.get("data", {})
    texts = [output.get("text", ""), *(value for kind, value in data.items() if not kind.startswith("image/png"))]
    return "".join(text if isinstance(text, str) else "".join(map(str, text)) for text in texts)


def sources_digest(notebook: Notebook) -> str:
    """Return the SHA-256 of everything that is run: outputs that belong to other sources are out of date."""
    texts = [source(cell) for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
