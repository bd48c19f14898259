"""What is predicted of the rows of a table, and what a person reads of rows of which nothing is. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from lockstep.common.data.folder import FolderManifest

#: Rows whose problems are told.
MOST_TOLD = 3


@dataclass(frozen=True)
class RowPrediction:
    """What is predicted of one row."""

    #: Numbers in the units of the table, one for each target; of a classifier the probabilities of the classes.
    values: tuple[float, ...] = ()
    #: The likeliest class; empty for a regression.
    name: str = ""
    #: Why nothing is predicted of this row, and where it is; empty if something is.
    problem: str = ""


def class_names_of(manifest: FolderManifest) -> list[str]:
    """Return what the classes are called, in the order of the outputs."""
    return manifest.class_names or [str(label) for label in range(manifest.classes)]


def problems_text(problems: Sequence[str], rows: int) -> str:
    """Return on one line which rows nothing is predicted of, with the first ones."""
    more = f"; and {len(problems) - MOST_TOLD:,} more" if len(problems) > MOST_TOLD else ""
    return f"nothing is predicted of {len(problems):,} of {rows:,} rows: {'; '.join(problems[:MOST_TOLD])}{more}"
