"""Every notebook runs whole, from a clean kernel, in its instructor's version: what it asserts holds, without warnings.

On the way, each check is shown an empty answer, the solution, and the mistakes that people make. That takes minutes of
computing: it is for `scripts/test --all`, and CI runs it after the suite. The suite checks the names (test_names.py)
and the stored outputs (test_committed.py).
"""

from pathlib import Path
from typing import Any

import pytest

from tests.notebooks.exercises import verdicts, with_wrong_answers
from tests.notebooks.folder import NOTEBOOKS, Notebook, read
from tests.notebooks.inspection import complaints
from tests.notebooks.wrong_answers import mistakes_in

pytest.importorskip("nbclient", reason="notebooks are run by nbclient: .venv/bin/pip install -e '.[notebook]'")
pytest.importorskip("ipykernel", reason="notebooks run in ipykernel: .venv/bin/pip install -e '.[notebook]'")
pytest.importorskip("matplotlib", reason="notebooks draw with matplotlib: .venv/bin/pip install -e '.[notebook]'")

from nbclient.exceptions import CellExecutionError

from tests.notebooks.execution import executed


@pytest.mark.slow
@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_runs_whole(path: Path) -> None:
    notebook, mistakes = read(path), mistakes_in(path.stem)
    result = executed(with_wrong_answers(notebook, mistakes))
    assert complaints(result) == []
    expected = [
        line
        for number, of_one in enumerate(mistakes, start=1)
        for line in (
            f"○ Exercise {number}: not answered yet",
            f"✓ Exercise {number}: right",
            *(each.report for each in of_one),
        )
    ]
    found = list(verdicts(result))
    wrong = [
        (line, answer, report) for (_, answer, line), report in zip(found, expected, strict=True) if report not in line
    ]
    assert wrong == []
    assert [line for _, _, line in found if "\n" in line] == []
    assert sum(line.startswith("✓") for _, _, line in found) == len(mistakes)


def notebook_of(*sources: str) -> Notebook:
    blank: dict[str, Any] = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    cells = [{**blank, "id": f"cell-{number}", "source": text} for number, text in enumerate(sources)]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def test_assertion_that_fails_stops_the_run() -> None:
    with pytest.raises(CellExecutionError, match="accuracy = 0"):
        executed(notebook_of("accuracy = 0.5", "assert accuracy > 0.9, f'{accuracy = }'"))


def test_warning_is_complained_about() -> None:
    found = complaints(executed(notebook_of("import numpy as np\nnp.log(np.zeros(1))")))
    assert any(complaint.startswith("cell 1 of code: wrote to standard error") for complaint in found)
    assert any("shows a warning: 'RuntimeWarning'" in complaint for complaint in found)
