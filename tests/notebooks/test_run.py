"""Every notebook runs whole, from a clean kernel, its solutions too: what it asserts holds, and no warning is shown.

That takes minutes of computing: it is for `scripts/test --all`, and CI runs it after the suite, which checks that the
names in them exist (test_names.py).
"""

from pathlib import Path
from typing import Any

import pytest

from tests.notebooks.folder import NOTEBOOKS, Notebook, read
from tests.notebooks.inspection import complaints
from tests.notebooks.solutions import with_solutions

pytest.importorskip("nbclient", reason="notebooks are run by nbclient: .venv/bin/pip install -e '.[notebook]'")
pytest.importorskip("ipykernel", reason="notebooks run in ipykernel: .venv/bin/pip install -e '.[notebook]'")
pytest.importorskip("matplotlib", reason="notebooks draw with matplotlib: .venv/bin/pip install -e '.[notebook]'")

from nbclient.exceptions import CellExecutionError

from tests.notebooks.execution import executed


@pytest.mark.slow
@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_runs_whole(path: Path) -> None:
    assert complaints(executed(with_solutions(read(path)))) == []


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
