"""What is wrong with the outputs of a notebook, found in its JSON. Runs nothing and draws nothing."""

import re
from collections.abc import Iterator
from typing import Any

from tests.notebooks.folder import Notebook, code_cells, shown

#: Bytes of a notebook with its pictures: what a repository can bear at each change.
MOST_BYTES = 400_000

#: A path of the machine that it ran on, and what a reader would see of an object without a text of its own.
_PRIVATE = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|Users|usr|var|opt|work|private)/|[A-Z]:\\Users\\|at 0x[0-9a-f]{6}"
)
_WARNING = re.compile(r"\b\w*warning\b|\bdeprecated\b", re.IGNORECASE)


def complaints(notebook: Notebook) -> list[str]:
    """Return what a reader should not see, each with the number of its cell; none where all is well."""
    return [
        f"cell {number} of code: {text}"
        for number, cell in enumerate(code_cells(notebook), start=1)
        for text in _of_cell(number, cell)
    ]


def _of_cell(number: int, cell: dict[str, Any]) -> Iterator[str]:
    if cell["execution_count"] != number:
        yield f"was run as number {cell['execution_count']!r}: expected a run from top to bottom in a clean kernel"
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            yield f"ended in {output['ename']}"
        if output.get("name") == "stderr":
            yield f"wrote to standard error: {shown(output)[:100]!r}"
        for pattern, what in ((_PRIVATE, "shows something of the machine it ran on"), (_WARNING, "shows a warning")):
            if found := pattern.search(shown(output)):
                yield f"{what}: {found[0]!r}"
