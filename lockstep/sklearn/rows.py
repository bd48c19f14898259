"""What becomes of the rows of a table before a network learns from them: scaled by column, repeated by weight. Pure."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]
#: The mean of each column, and its deviation, 1 if that is 0.
ColumnMoments = tuple[Floats, Floats]

#: Rows whose squares are added at once.
BLOCK = 2**13
#: Times as many rows that repeating them may give: so weights may be as unequal as one to eight in any data.
MOST_ROWS = 8


def column_moments(rows: Rows) -> ColumnMoments:
    """Return the moments of the columns of rows, (n, columns)."""
    # In the order of rows, whatever the array's is: the bits must not depend on that.
    rows = np.ascontiguousarray(rows)
    mean = rows.mean(axis=0, dtype=np.float64)
    squares = np.zeros(len(mean))
    for begin in range(0, len(rows), BLOCK):
        squares += np.square(rows[begin : begin + BLOCK] - mean).sum(axis=0)
    deviation = np.sqrt(squares / len(rows))
    # What is left of equal values is the rounding of their mean.
    return mean, np.where(deviation > 1e-7 * np.abs(mean), deviation, 1.0)


def scaled(rows: Rows, moments: ColumnMoments) -> Rows:
    """Return rows whose columns are scaled by these moments."""
    mean, deviation = moments
    found = np.empty(rows.shape, np.float32)
    for begin in range(0, len(rows), BLOCK):
        part = slice(begin, begin + BLOCK)
        found[part] = (rows[part] - mean) / deviation
    return found


def repetitions(weights: Floats) -> NDArray[np.int64]:
    """Return how often each row is learned from in an epoch, (n,), in proportion to its weight.

    Whole weights without a common factor are the numbers themselves. The number of others is rounded up or down, such
    that rows one after another have together what their weights say. `MOST_ROWS` times as many rows as there are
    weights are the most. Raises ValueError for weights below 0, or if none is above.
    """
    if (weights < 0).any():
        raise ValueError(f"sample_weight has the value {weights.min():g}: expected none below 0")
    if not weights.any():
        raise ValueError("sample_weight is 0 for every row: expected a row to learn from")
    is_whole = bool((weights == np.rint(weights)).all()) and weights.max() < 2**53
    unit = np.gcd.reduce(weights.astype(np.int64)) if is_whole else weights[weights > 0].min()
    with np.errstate(over="ignore"):
        copies = min(weights.sum() / unit, MOST_ROWS * len(weights))
    shares = weights / unit if copies < MOST_ROWS * len(weights) else weights * (copies / weights.sum())
    ends: Floats = np.rint(np.cumsum(shares))
    return np.diff(ends, prepend=0.0).astype(np.int64)
