"""What must not be seen in a notebook is found where it is planted."""

from typing import Any

import pytest

from tests.notebooks.folder import Notebook, sources_digest
from tests.notebooks.inspection import complaints


def cell(source: str = "x = 1", number: int | None = 1, **output: Any) -> dict[str, Any]:
    outputs = [output] if output else []
    return {"cell_type": "code", "source": source, "execution_count": number, "outputs": outputs}


def markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": source.splitlines(keepends=True)}


def notebook(*cells: dict[str, Any]) -> Notebook:
    return {"cells": list(cells), "metadata": {}}


def printed(*lines: str) -> dict[str, Any]:
    return cell(output_type="stream", name="stdout", text=list(lines))


def displayed(kind: str, text: str) -> dict[str, Any]:
    return cell(output_type="display_data", data={kind: text})


@pytest.mark.parametrize(
    "fine",
    [
        cell(),
        printed("accuracy 92.55%\n", "runs/20261125-linear and https://example.org/home/page\n"),
        displayed("image/png", "/tmp/warning"),
    ],
)
def test_says_nothing_of_what_is_fine(fine: dict[str, Any]) -> None:
    assert complaints(notebook(fine)) == []


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        (cell(number=None), "run from top to bottom"),
        (cell(number=2), "run from top to bottom"),
        (cell(output_type="error", ename="ValueError"), "ended in ValueError"),
        (cell(output_type="stream", name="stderr", text=["oh\n"]), "wrote to standard error: 'oh"),
        (printed("in /home/somebody/labs\n"), "machine it ran on: '/home/'"),
        (printed("Run('/tmp/lab-x/runs/a')\n"), "machine it ran on: '/tmp/'"),
        (displayed("text/plain", "<Legend at 0x7f5dbff8ac90>"), "machine it ran on: 'at 0x7f5dbf'"),
        (displayed("text/html", "<b>/Users/somebody</b>"), "machine it ran on: '/Users/'"),
        (printed("x.py:1: RuntimeWarning: overflow\n"), "shows a warning: 'RuntimeWarning'"),
    ],
)
def test_finds_what_is_planted(planted: dict[str, Any], expected: str) -> None:
    found = complaints(notebook(planted))
    assert len(found) == 1
    assert found[0].startswith("cell 1 of code: ")
    assert expected in found[0]


def test_digest_is_of_code_however_its_lines_are_stored() -> None:
    one = sources_digest(notebook(cell("a = 1\nb = 2"), markdown("text")))
    assert one == sources_digest(notebook({**cell(), "source": ["a = 1\n", "b = 2"]}))
    assert one != sources_digest(notebook(cell("a = 1\nb = 3")))
