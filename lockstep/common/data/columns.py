"""The columns of a table: what the values of each are, and how they become numbers. Knows neither files nor Arrow.

A `Column` is the whole conversion. It is written once, when a table is packed, and training, predictions, evaluations
on other tables and exported models all apply it, in this order:

1. A value becomes a number of float64, as its kind says; one of a column with categories the place of its name.
2. A missing number becomes `missing`.
3. `mean` is subtracted, and the difference is divided by `std`, in float64.
4. The quotient is rounded to float32, once.
5. A column with `one_hot` becomes an input for each of its categories.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Most characters of a name or another text.
LONGEST_TEXT = 1024
Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Real = Annotated[float, Meta(ge=-1e300, le=1e300)]
Scale = Annotated[float, Meta(gt=0.0, le=1e300)]


class ColumnKind(Enum):
    """The kinds of values."""

    NUMBER = "number"
    #: Microseconds since 1970.
    DATE = "date"
    #: 0 or 1.
    BOOLEAN = "true or false"
    #: The names of categories, whatever type they have.
    CATEGORY = "category"


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column of a table, and how its values become numbers."""

    #: The name in the table.
    name: Text
    #: The kind of its values.
    kind: ColumnKind = ColumnKind.NUMBER
    #: The names whose places are the numbers, ascending: of categories, or of classes that are numbers themselves.
    #: Empty if the column has numbers.
    categories: list[Text] = []
    #: The number that replaces a missing one, before it is scaled; None if none may be missing.
    missing: Real | None = None
    #: The number that is subtracted from each.
    mean: Real = 0.0
    #: The number by which the difference is divided.
    std: Scale = 1.0
    #: Whether a sample has an input for each category, 1 for that of the row and 0 for others, and not its place.
    one_hot: bool = False

    @property
    def inputs(self) -> list[str]:
        """The names of its inputs: its own, or with `one_hot` those of its categories."""
        return list(self.categories) if self.one_hot else [self.name]


def samples_of(values: Floats, columns: Sequence[Column]) -> NDArray[np.float32]:
    """Return the samples (n, inputs) of rows of numbers (n, columns), in which NaN is a missing one.

    Values missing without a rule stay NaN, and those beyond float32 become infinite.
    """
    return spread(scaled(values, columns), columns)


def scaled(values: Floats, columns: Sequence[Column]) -> NDArray[np.float32]:
    """Return numbers, (n, columns), filled, scaled and rounded to float32."""
    fills = np.array([np.nan if column.missing is None else column.missing for column in columns])
    means, stds = (np.array([getattr(column, name) for column in columns]) for name in ("mean", "std"))
    with np.errstate(over="ignore"):
        return np.asarray((np.where(np.isnan(values), fills, values) - means) / stds, np.float32)


def unscaled(numbers: NDArray[np.float32], columns: Sequence[Column]) -> Floats:
    """Return scaled numbers, (n, columns), in the units of the table."""
    means, stds = (np.array([getattr(column, name) for column in columns]) for name in ("mean", "std"))
    return np.asarray(numbers.astype(np.float64) * stds + means)


def spread(numbers: NDArray[np.float32], columns: Sequence[Column]) -> NDArray[np.float32]:
    """Return scaled numbers, (n, columns), with an input for each category of the columns that have `one_hot`."""
    if not any(column.one_hot for column in columns):
        return numbers
    inputs = []
    for number, column in enumerate(columns):
        values = numbers[:, number, np.newaxis]
        inputs.append(values == np.arange(len(column.categories)) if column.one_hot else values)
    return np.concatenate(inputs, axis=1, dtype=np.float32)
