"""The errors of a regression by target. Pure."""

from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.data.folder import Column
from lockstep.common.files.sanitize import cut, one_line

Floats = NDArray[np.float32]

#: Most characters of a target's name in a line.
MOST_NAME = 20


class TargetFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of one of the numbers of a sample."""

    target: int
    #: Means of the squared and of the absolute error.
    mse: float
    mae: float
    #: The share of the variance that is explained, at most 1; None if the target is constant.
    r2: float | None
    #: What the number is called in the table that it is from; empty if nobody has given it a name.
    name: str = ""


def figures_of(outputs: Floats, targets: Floats) -> list[TargetFigures]:
    """Return the figures of each target, in order; both arrays are (n, targets)."""
    errors = outputs.astype(np.float64) - targets
    variances = np.var(targets, axis=0, dtype=np.float64)
    return [
        TargetFigures(
            target=number,
            mse=float(np.mean(np.square(error))),
            mae=float(np.mean(np.abs(error))),
            r2=1.0 - float(np.mean(np.square(error)) / variance) if variance else None,
        )
        for number, (error, variance) in enumerate(zip(errors.T, variances, strict=True))
    ]


def in_units(figures: list[TargetFigures], columns: Sequence[Column]) -> list[TargetFigures]:
    """Return the figures in the units of a table whose columns were scaled, and under their names."""
    return [
        replace(one, mse=one.mse * column.std**2, mae=one.mae * column.std, name=column.name)
        for one, column in zip(figures, columns, strict=True)
    ]


def figures_lines(figures: list[TargetFigures]) -> list[str]:
    """Return one line per target."""
    shown = [cut(one_line(one.name), MOST_NAME) or str(one.target) for one in figures]
    width = max(6, *map(len, shown))
    head = f"{'target':>{width}}  mean squared error  root of it  mean absolute error       R²"
    return [head, *(_line(one, f"{name:>{width}}") for one, name in zip(figures, shown, strict=True))]


def _line(one: TargetFigures, name: str) -> str:
    r2 = "-" if one.r2 is None else f"{one.r2:.4f}"
    return f"{name}  {one.mse:>18.5g}  {one.mse**0.5:>10.5g}  {one.mae:>19.5g}  {r2:>7}"
