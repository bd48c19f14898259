"""The notebooks as they are committed: read on a page that runs nothing, they show what their sources give."""

import re
from pathlib import Path

import pytest

from tests.notebooks.exercises import QUESTION, exercises, verdict
from tests.notebooks.folder import DIGEST, NOTEBOOKS, code_cells, read, source, sources_digest
from tests.notebooks.inspection import MOST_BYTES, complaints
from tests.notebooks.wrong_answers import mistakes_in

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


def test_every_question_has_an_answer_that_is_empty_and_a_check_that_reports_it(path: Path) -> None:
    notebook = read(path)
    known = exercises(notebook)
    texts = [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    assert len(known) == sum(text.count(QUESTION) for text in texts) >= 4
    for number, exercise in enumerate(known, start=1):
        assert verdict(exercise.check).startswith(f"○ Exercise {number}: not answered yet"), SAVE
        assert source(exercise.solution).rstrip().endswith("</details>")


def test_an_answer_and_its_solution_define_the_same(path: Path) -> None:
    for exercise in exercises(read(path)):
        lines = [line.split("  #")[0] for line in source(exercise.answer).splitlines()]
        asked = [line.removesuffix("...") for line in lines if re.match(r"def |\w+ = ", line)]
        assert asked
        assert [line for line in asked if f"\n{line}" not in f"\n{exercise.right_answer}"] == []


def test_every_exercise_has_mistakes_that_are_known(path: Path) -> None:
    mistakes = mistakes_in(path.stem)
    assert len(mistakes) == len(exercises(read(path)))
    assert all(len(of_one) >= 2 for of_one in mistakes)


def test_plots_and_checks_are_set_up_as_in_all_labs(path: Path) -> None:
    setup = {source(cell) for each in (path, NOTEBOOKS[0]) for cell in read(each)["cells"] if cell["id"] == "setup"}
    assert len(setup) == 1


def test_there_is_one_title(path: Path) -> None:
    cells = [source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown"]
    titles = [line for text in cells for line in text.splitlines() if line.startswith("# ")]
    code = [line for exercise in exercises(read(path)) for line in exercise.right_answer.splitlines()]
    assert [line for line in titles if line not in code] == [cells[0].splitlines()[0]]


def test_asserts_what_it_claims(path: Path) -> None:
    assert any("\nassert " in f"\n{source(cell)}" for cell in code_cells(read(path)))
