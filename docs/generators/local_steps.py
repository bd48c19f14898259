"""What local steps cost in accuracy: from the rows that `lockstep bench local-steps` has written."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import msgspec

from docs.generators.tables import table
from lockstep.bench.local_steps import LocalStepsRow
from lockstep.results.reports.display import counted

#: The rows of one call in each file: `local-steps-mlp.json`, and so on.
FIGURES = Path(__file__).parents[1] / "figures"

#: Calls with other values of the outer optimizer than the default ones.
OTHERS = ("mean", "diloco")


def accuracy_of(name: str) -> str:
    """Return the accuracies of a model, with a line for each number of micro-batches and a column for each H."""
    rows = _rows(name)
    numbers = list(dict.fromkeys(row.local_steps for row in rows))
    cells = {(row.micro_batches, row.local_steps): row for row in rows}
    lines = [
        [str(micro_batches), *(_accuracy(cells[micro_batches, number].scores) for number in numbers)]
        for micro_batches in dict.fromkeys(row.micro_batches for row in rows)
    ]
    exchanges = [f"{next(row.steps for row in rows if row.local_steps == number):,}" for number in numbers]
    headings = [
        f"M, {counted(_seeds(rows), 'seed')}",
        *(f"{'H = ' if number == numbers[0] else ''}{number}" for number in numbers),
    ]
    return table(headings, [*lines, ["exchanges", *exchanges]])


def outer_values() -> str:
    """Return the accuracies of the outer optimizer's default and other values, with the seeds that all of them have."""
    others = [row for name in OTHERS for row in _rows(name)]
    seeds, cells = _seeds(others), {(row.micro_batches, row.local_steps) for row in others}
    usual = [row for row in _rows("mlp") if (row.micro_batches, row.local_steps) in cells]
    lines = [
        [*_texts(row.lr, row.momentum, row.micro_batches, row.local_steps, row.steps), _accuracy(row.scores[:seeds])]
        for row in sorted([*usual, *others], key=lambda row: (row.local_steps, row.momentum))
    ]
    return table(("outer `lr`", "`momentum`", "M", "H", "exchanges", f"accuracy, {counted(seeds, 'seed')}"), lines)


def _rows(name: str) -> list[LocalStepsRow]:
    return msgspec.json.decode((FIGURES / f"local-steps-{name}.json").read_bytes(), type=list[LocalStepsRow])


def _seeds(rows: Sequence[LocalStepsRow]) -> int:
    """Return the number of seeds that all rows have."""
    return min(len(row.scores) for row in rows)


def _texts(*numbers: float) -> list[str]:
    return [f"{number:g}" for number in numbers]


def _accuracy(scores: Sequence[float | None]) -> str:
    """Return the mean and the standard deviation; how many runs diverged, if any has."""
    finite = [100 * score for score in scores if score is not None]
    if len(finite) < len(scores):
        return f"{len(scores) - len(finite)} of {len(scores)} diverged"
    return f"{mean(finite):.2f}{f' ± {stdev(finite):.2f}' if len(finite) > 1 else ''} %"
