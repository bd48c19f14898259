"""The notebooks as they are committed: read on a page that runs nothing, they show what their sources give."""

from pathlib import Path

import pytest

from tests.notebooks.folder import DIGEST, NOTEBOOKS, code_cells, read, source, sources_digest
from tests.notebooks.inspection import MOST_BYTES, complaints

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

SAVE = "run `scripts/notebooks` to save it with its outputs"


def test_outputs_are_of_these_sources(path: Path) -> None:
    notebook = read(path)
    assert notebook["metadata"].get(DIGEST) == sources_digest(notebook), SAVE


def test_nothing_in_the_outputs_is_for_us_alone(path: Path) -> None:
    assert complaints(read(path)) == [], SAVE


def test_is_small(path: Path) -> None:
    assert path.stat().st_size <= MOST_BYTES, "draw fewer or smaller pictures"


def test_needs_the_python_of_this_folder_and_no_name_of_a_machine(path: Path) -> None:
    assert read(path)["metadata"]["kernelspec"] == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }


def test_every_exercise_has_a_folded_solution(path: Path) -> None:
    texts = [source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown"]
    exercises = [part for text in texts for part in text.split("### ✎ ")[1:]]
    assert exercises
    assert all("<details>\n<summary>Solution</summary>\n\n" in part and "</details>" in part for part in exercises)


def test_asserts_what_it_claims(path: Path) -> None:
    assert any("\nassert " in f"\n{source(cell)}" for cell in code_cells(read(path)))
