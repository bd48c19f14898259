"""The errors of a regression by target. Pure."""

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class TargetFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of one of the numbers of a sample."""

    target: int
    #: Means of the squared and of the absolute error.
    mse: float
    mae: float
    #: The share of the variance that is explained, at most 1; None if the target is constant.
    r2: float | None


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


def figures_lines(figures: list[TargetFigures]) -> list[str]:
    """Return one line per target."""
    head = "target  mean squared error  root of it  mean absolute error       R²"
    return [head, *map(_line, figures)]


def _line(one: TargetFigures) -> str:
    r2 = "-" if one.r2 is None else f"{one.r2:.4f}"
    return f"{one.target:>6}  {one.mse:>18.5g}  {one.mse**0.5:>10.5g}  {one.mae:>19.5g}  {r2:>7}"
