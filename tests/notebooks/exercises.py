"""The exercises of a lab, and the versions of it that follow from them: an instructor's, and one for handing out.

An exercise is four cells: the question, an answer that is still empty (tagged `answer`), its check (tagged `check`),
and the solution, which is folded, and whose block of code is a right answer. Runs nothing.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.notebooks.folder import Notebook, shown, source

#: How a question begins.
QUESTION = "### ✎ "

FOLDED = "<details>\n<summary>Solution</summary>\n\n"
_UNFOLDED = "<details open>\n<summary>Solution</summary>\n\n"
_CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

Cell = dict[str, Any]


@dataclass(frozen=True)
class WrongAnswer:
    """A mistake that people make, and a part of what its check has to report."""

    mistake: str
    report: str
    #: A text of the right answer and what becomes of it, or one that is run after the right answer.
    change: tuple[str, ...]

    def made_in(self, right: str) -> str:
        """Return a right answer with the mistake in it. Raises ValueError if there is nothing to change."""
        if len(self.change) == 1:
            return f"{right}\n{self.change[0]}"
        old, new = self.change
        if old not in right:
            raise ValueError(f"{self.mistake}: {old!r} is not in {right!r}")
        return right.replace(old, new)


@dataclass(frozen=True)
class Exercise:
    """The cells of one exercise, below its question."""

    answer: Cell
    check: Cell
    solution: Cell

    @property
    def right_answer(self) -> str:
        """The code of the solution."""
        (code,) = _CODE.findall(source(self.solution))
        return str(code).rstrip("\n")

    @property
    def asked(self) -> str:
        """The statements of the right answer that define what is asked for, without what it shows of that."""
        names, right = set(_defined(source(self.answer))), self.right_answer
        found = [ast.get_source_segment(right, node) for node in ast.parse(right).body if names & set(_names(node))]
        return "\n\n\n".join(filter(None, found))

    def is_answered_by(self, cell: Cell) -> bool:
        """Return whether a cell is that of its answer."""
        return bool(cell["id"] == self.answer["id"])


def _defined(code: str) -> Iterator[str]:
    """Yield the names that a cell defines."""
    return (name for node in ast.parse(code).body for name in _names(node))


def _names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (found.id for target in node.targets for found in ast.walk(target) if isinstance(found, ast.Name))


def has_tag(cell: Cell, tag: str) -> bool:
    """Return whether a cell has a tag, which JupyterLab shows in its side bar."""
    return tag in cell["metadata"].get("tags", ())


def exercises(notebook: Notebook) -> list[Exercise]:
    """Return the exercises of a notebook, in order. Raises ValueError, with the cell, for one that is not whole."""
    cells = notebook["cells"]
    found = []
    for place, cell in enumerate(cells):
        if has_tag(cell, "answer"):
            check, solution = cells[place + 1], cells[place + 2]
            if not has_tag(check, "check") or not source(solution).startswith(FOLDED):
                raise ValueError(f"cell {cell['id']}: expected a check and a folded solution below it")
            found.append(Exercise(cell, check, solution))
    return found


def verdict(cell: Cell) -> str:
    """Return the line that a check has printed: it begins with ✓, ✗ or ○."""
    return "".join(shown(output) for output in cell["outputs"]).rstrip("\n")


def for_instructors(notebook: Notebook, mistakes: Sequence[Sequence[WrongAnswer]] = ()) -> Notebook:
    """Return a lab with all answers filled in, solutions unfolded, and the mistakes that each check reports listed."""
    known = exercises(notebook)
    answers = {exercise.answer["id"]: exercise.right_answer for exercise in known}
    listed = dict(zip((exercise.solution["id"] for exercise in known), mistakes, strict=False))
    cells = []
    for cell in notebook["cells"]:
        if cell["id"] in answers:
            cell = {**cell, "source": answers[cell["id"]]}
        elif cell["cell_type"] == "markdown":
            text = source(cell).replace(FOLDED, _UNFOLDED)
            if wrong := listed.get(cell["id"]):
                lines = "".join(f"- {each.mistake}\n" for each in wrong)
                text = text.replace(
                    "</details>", f"**Typical mistakes**, which the check reports:\n\n{lines}\n</details>"
                )
            cell = {**cell, "source": text}
        cells.append(cell)
    return _titled({**notebook, "cells": cells}, "Instructor's version")


def for_students(notebook: Notebook) -> Notebook:
    """Return a lab without its solutions; the outputs stay, since no code is left out."""
    solutions = {exercise.solution["id"] for exercise in exercises(notebook)}
    cells = [cell for cell in notebook["cells"] if cell["id"] not in solutions]
    cells = [
        {**cell, "source": source(cell).replace(" The solutions are folded in.", "")} if place == 0 else cell
        for place, cell in enumerate(cells)
    ]
    return {**notebook, "cells": cells}


def _titled(notebook: Notebook, version: str) -> Notebook:
    first, *others = notebook["cells"]
    title, line, text = source(first).partition("\n")
    return {**notebook, "cells": [{**first, "source": f"{title} · {version}{line}{text}"}, *others]}


def with_wrong_answers(notebook: Notebook, mistakes: Sequence[Sequence[WrongAnswer]]) -> Notebook:
    """Return an instructor's version in which each exercise is empty, then right, then wrong in each known way."""
    known = exercises(notebook)
    cells: list[Cell] = []
    for cell in for_instructors(notebook)["cells"]:
        exercise = next((each for each in known if each.is_answered_by(cell)), None)
        if exercise is not None:
            cells += (exercise.answer, exercise.check)
        cells.append(_named(cell, "right") if exercise is not None or has_tag(cell, "check") else cell)
        for place, each in enumerate(known):
            if cell["id"] == each.check["id"]:
                for number, wrong in enumerate(mistakes[place]):
                    cells.append(_named({**each.answer, "source": wrong.made_in(each.asked)}, f"wrong-{number}"))
                    cells.append(_named(each.check, f"wrong-{number}"))
    return {**notebook, "cells": cells}


def _named(cell: Cell, suffix: str) -> Cell:
    return {**cell, "id": f"{cell['id']}-{suffix}"}


def verdicts(notebook: Notebook) -> Iterator[tuple[str, str, str]]:
    """Yield (id of the check, what was run before it, its line) for each check of a notebook that has run."""
    for before, cell in pairwise(notebook["cells"]):
        if cell["cell_type"] == "code" and has_tag(cell, "check"):
            yield cell["id"], source(before), verdict(cell)
