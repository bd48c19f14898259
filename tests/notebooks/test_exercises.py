"""An exercise is answered, checked and solved; what a check reports is one line, and the rest of the lab runs on."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.notebooks.__main__ import main
from tests.notebooks.exercises import (
    WrongAnswer,
    exercises,
    for_instructors,
    for_students,
    verdict,
    verdicts,
    with_wrong_answers,
)
from tests.notebooks.folder import NOTEBOOKS, Notebook, code_cells, read, source, write


def markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}


def code(name: str, text: str, *tags: str, printed: str = "") -> dict[str, Any]:
    outputs = [{"output_type": "stream", "name": "stdout", "text": [printed]}] if printed else []
    return {"cell_type": "code", "id": name, "metadata": {"tags": list(tags)}, "source": text, "outputs": outputs}


SOLUTION = """\
<details>
<summary>Solution</summary>

Because of this:

```python
x = 2
y = x + 1
```

</details>
"""

LAB: Notebook = {
    "cells": [
        markdown("title", "# Lab\n\nRead it. The solutions are folded in."),
        markdown("question", "### ✎ Exercise 1\n\nWhat is x?"),
        code("answer-1", "x = ...", "answer"),
        code("check-1", "check(x)", "check", printed="○ Exercise 1: not answered yet\n"),
        markdown("solution-1", SOLUTION),
        code("end", "print(2)"),
    ],
    "metadata": {},
}
MISTAKES = ((WrongAnswer("three", "✗", ("x = 2", "x = 3")),),)


def sources(notebook: Notebook) -> list[str]:
    return [source(cell) for cell in code_cells(notebook)]


def test_an_exercise_is_its_answer_its_check_and_its_solution() -> None:
    (exercise,) = exercises(LAB)
    assert exercise.right_answer == "x = 2\ny = x + 1"
    assert verdict(exercise.check) == "○ Exercise 1: not answered yet"
    assert list(verdicts(LAB)) == [("check-1", "x = ...", "○ Exercise 1: not answered yet")]


@pytest.mark.parametrize("missing", ["check-1", "solution-1"])
def test_an_exercise_that_is_not_whole_is_refused(missing: str) -> None:
    cells = [cell for cell in LAB["cells"] if cell["id"] != missing]
    with pytest.raises(ValueError, match="cell answer-1: expected a check and a folded solution"):
        exercises({**LAB, "cells": cells})


def test_an_instructor_has_all_answers_and_sees_the_solutions_and_the_mistakes() -> None:
    lab = for_instructors(LAB, MISTAKES)
    assert sources(lab) == ["x = 2\ny = x + 1", "check(x)", "print(2)"]
    assert source(lab["cells"][0]).startswith("# Lab · Instructor's version\n")
    solution = source(lab["cells"][4])
    assert "<details open>" in solution
    assert "**Typical mistakes**, which the check reports:\n\n- three\n\n</details>" in solution
    assert sources(LAB)[0] == "x = ..."


def test_a_lab_to_hand_out_has_no_solutions() -> None:
    lab = for_students(LAB)
    assert [cell["id"] for cell in lab["cells"]] == ["title", "question", "answer-1", "check-1", "end"]
    assert source(lab["cells"][0]) == "# Lab\n\nRead it."


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_solution_is_left_in_a_lab_to_hand_out(path: Path) -> None:
    lab, handed_out = read(path), for_students(read(path))
    texts = "\n".join(source(cell) for cell in handed_out["cells"])
    assert "<details>" not in texts
    assert "olutions are folded" not in texts
    assert sources(handed_out) == sources(lab)


def test_a_check_sees_an_empty_answer_the_right_one_and_each_mistake() -> None:
    lab = with_wrong_answers(LAB, MISTAKES)
    assert sources(lab) == ["x = ...", "check(x)", "x = 2\ny = x + 1", "check(x)", "x = 3", "check(x)", "print(2)"]
    (wrong,) = MISTAKES[0]
    with pytest.raises(ValueError, match="three: 'x = 2' is not in 'x = 4'"):
        wrong.made_in("x = 4")
    names = [cell["id"] for cell in lab["cells"]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("printed", "code"), [("✓ Exercise 1: right", 0), ("✗ Exercise 1: 2 is even", 1)])
def test_a_solution_that_its_check_rejects_is_an_error(
    printed: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(notebook: Notebook) -> Notebook:
        (check,) = (cell for cell in notebook["cells"] if cell["id"] == "check-1")
        check["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [printed]}]
        return notebook

    write(tmp_path / "lab.ipynb", LAB)
    assert main(["--instructor", str(tmp_path / "lab.ipynb")], run) == code
    assert sources(read(tmp_path / "instructor" / "lab.ipynb"))[0] == "x = 2\ny = x + 1"
    assert (printed in capsys.readouterr().err) == bool(code)
    assert read(tmp_path / "lab.ipynb") == LAB


def test_a_lab_to_hand_out_is_made_without_running_it(tmp_path: Path) -> None:
    write(tmp_path / "lab.ipynb", LAB)
    assert main(["--student", str(tmp_path / "lab.ipynb")]) == 0
    assert read(tmp_path / "student" / "lab.ipynb") == for_students(LAB)


def test_two_versions_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--instructor", "--student"])
    assert "not allowed with argument --instructor" in capsys.readouterr().err


@pytest.fixture
def lab_names() -> dict[str, Any]:
    """The names that the set-up of the labs defines, without Matplotlib."""
    (setup,) = (source(cell) for cell in read(NOTEBOOKS[0])["cells"] if cell["id"] == "setup")
    names: dict[str, Any] = {"plt": SimpleNamespace(rcParams={}, cycler=dict)}
    exec(setup, names)
    return names


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda: 2, "✓ Exercise 1: right"),
        (lambda: 3, "✗ Exercise 1: 3 is odd"),
        (lambda: ..., "○ Exercise 1: not answered yet"),
        (lambda: None, "○ Exercise 1: not answered yet: the function returns nothing"),
        (lambda: 1 // 0, "✗ Exercise 1: your answer raised ZeroDivisionError: integer division or modulo by zero"),
        (lambda: "two", "✗ Exercise 1: your answer raised TypeError: not all arguments converted"),
    ],
)
def test_a_check_reports_one_line_and_raises_nothing(
    answer: Callable[[], Any], expected: str, lab_names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def assertions() -> None:
        value = lab_names["answered"](answer())
        if value % 2:
            raise AssertionError(f"{value} is odd")  # an `assert` of a test would have its values in a second line

    lab_names["check"]("Exercise 1")(assertions)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(expected)
