"""Predictions as lines of text: CSV or JSON for rows, a line for a picture."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, TextIO

import msgspec
import numpy as np

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.results.evaluation.figures import shown_names
from lockstep.results.evaluation.predictor import RowPrediction

#: Classes that are shown after the likeliest.
OTHERS = 2


def by_class(names: Sequence[str], probabilities: Sequence[float]) -> dict[str, Any]:
    """Return the likeliest class, and the probability of each class by its name."""
    likeliest = names[int(np.argmax(probabilities))]
    return {"class": likeliest, "probabilities": dict(zip(names, probabilities, strict=True))}


def write_rows(
    out: TextIO,
    rows: Iterator[RowPrediction],
    targets: Mapping[str, float],
    class_names: Sequence[str],
    dates: Sequence[str] = (),
    *,
    as_json: bool,
) -> tuple[int, list[str]]:
    """Write a line for each row, below the names of the targets; return the number of rows, and their problems.

    `targets` have their deviations, which decide how many digits are printed. `dates` are the targets whose numbers are
    microseconds since 1970.
    """
    table = csv.writer(out, lineterminator="\n")
    # Before anything is printed: data that cannot be read leaves no file with a head alone.
    first = list(islice(rows, 1))
    if not as_json:
        table.writerow([*targets, "probability"] if class_names else targets)
    problems, count = list[str](), 0
    for row in chain(first, rows):
        count += 1
        if row.problem:
            problems.append(row.problem)
        if as_json:
            out.write(f"{msgspec.json.encode(_fields_of(row, targets, class_names, dates)).decode()}\n")
        elif row.problem:
            table.writerow([""] * (2 if class_names else len(targets)))
        else:
            fields = _fields_of(row, targets, (), dates) if not row.name else {}
            shown = [text if isinstance(text, str) else spelled(text, targets[name]) for name, text in fields.items()]
            table.writerow(shown or [row.name, f"{max(row.values):.4f}"])
    return count, problems


def spelled(number: float, deviation: float) -> str:
    """Return a number with six significant digits, or with nine if so many may be in front of its point.

    A number that is far from 0 has as many as show a millionth of its deviation.
    """
    digits = 6 if abs(number) < 1e6 else 9
    if deviation < abs(number) < math.inf:
        digits = max(digits, 6 + math.floor(math.log10(abs(number)) - math.log10(deviation)))
    return f"{number:.{min(15, digits)}g}"


def _fields_of(
    row: RowPrediction, targets: Iterable[str], class_names: Sequence[str], dates: Sequence[str]
) -> dict[str, Any]:
    if row.problem:
        return {"error": row.problem}
    if class_names:
        return by_class(class_names, row.values)
    numbers = dict(zip(targets, row.values, strict=True))
    times = {name: np.datetime64(round(numbers[name]), "us") for name in dates}
    return {**numbers, **{name: str(np.datetime_as_string(time, "s")) for name, time in times.items()}}


def line(name: str, probabilities: Array, width: int, class_names: Sequence[str] = ()) -> str:
    """Return what a picture shows, and what else it may, on one line."""
    shown = name if len(name) <= width else f"…{name[1 - width :]}"
    order = np.argsort(-probabilities, kind="stable")
    called = shown_names(class_names, len(probabilities))
    others = ", ".join(f"{called[label]} {probabilities[label]:.2%}" for label in order[1 : 1 + OTHERS].tolist())
    first = int(order[0])
    return f"{shown:<{width}}  {called[first]}  {probabilities[first]:>7.2%}" + (f"   or {others}" if others else "")
