"""Rows of a table that become samples as those of the training set did; needs pyarrow, which is an extra."""

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lockstep.common.data.columns import Column, ColumnKind, scaled, spread
from lockstep.common.data.folder import Conversion, Reading
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.options import MISSING_TEXT, PackOptions, Spelling
from lockstep.packing.table_sources import open_table, opened_frame
from lockstep.packing.tables import MOST_NAMED, TableBatch, columns_called, too
from lockstep.packing.texts import numbers_of

#: The source of rows to predict: a file, or a frame of any library.
Rows = Any

#: How a person writes values of a kind.
EXPECTED = {
    ColumnKind.NUMBER: "a number",
    ColumnKind.DATE: "a date such as 2024-12-31",
    ColumnKind.BOOLEAN: "true or false",
}


class TableRows(msgspec.Struct, frozen=True):
    """Reads tables for a model that was trained on one."""

    conversion: Conversion
    #: The way in which a table is read: the same as in training, unless another one is given.
    reading: Reading
    #: How messages name its options.
    spelled: Spelling = Spelling.FLAGS

    @property
    def _options(self) -> PackOptions:
        reading = self.reading
        return PackOptions(
            na=tuple(reading.na),
            decimal=reading.decimal,
            delimiter=reading.delimiter,
            encoding=reading.encoding,
            spelled=self.spelled,
        )

    def samples(self, rows: Rows) -> Iterator[tuple[NDArray[np.float32], list[str]]]:
        """Yield the samples of usable rows, (usable, inputs), and for each row why it is not, empty if it is.

        Raises DataError if the rows cannot be read as a table.
        """
        columns = self.conversion.columns
        for batch in self._batches(rows, columns):
            numbers, problems = self._converted(columns, batch)
            yield spread(numbers[[not problem for problem in problems]], columns), problems

    def test_set(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        """Return the samples of a table that has the targets too, (n, inputs), and its labels, (n, targets).

        Labels are the places of classes, or numbers that are scaled as in training. Rows without a target are left out,
        and counted. DataError names the first other row that cannot be used.
        """
        features, targets, parts, left_out = self.conversion.columns, self.conversion.targets, [], 0
        for batch in self._batches(rows, [*features, *targets]):
            numbers, problems = self._converted([*features, *targets], batch)
            is_known = batch.has_all(column.name for column in targets)
            if problem := next(filter(None, compress(problems, is_known)), ""):
                raise DataError(problem)
            parts.append(numbers[is_known])
            left_out += int(np.count_nonzero(~is_known))
        if not sum(map(len, parts)):
            named = " and ".join(repr(one_line(column.name, 60)) for column in targets)
            what = f"has no row with {named}" if left_out else "has no rows"
            raise DataError(f"{rows}: {what}: expected some to test with")
        found = np.concatenate(parts)
        return spread(found[:, : len(features)], features), found[:, len(features) :], left_out

    def _batches(self, rows: Rows, columns: Sequence[Column]) -> Iterator[TableBatch]:
        options, opens = self._options, open_table if isinstance(rows, str | Path) else opened_frame
        opened = opens(Path(rows) if opens is open_table else rows, lambda count: None, options)
        names, how = [column.name for column in columns], self._as_in_training() if opens is open_table else ""
        try:
            there = opened.names()
            if absent := [name for name in names if name not in there]:
                # A file that is read wrongly has none of the columns, or not those with letters of another encoding.
                how = how if not set(names) & set(there) or not "".join(absent).isascii() else ""
                raise DataError(
                    f"{opened.named}: has no {columns_called(absent)}, which that of the training has: it has "
                    f"{', '.join(one_line(other, 40) for other in there[:12])}{', …' if len(there) > 12 else ''}"
                )
            opened.check(names)
        except DataError as error:
            raise DataError(f"{error}{how}") from None
        yield from opened.batches(names)

    def _as_in_training(self) -> str:
        """Return how a file is read that is not as tables usually are, with the options that change it."""
        named = {"encoding": self.reading.encoding, "delimiter": self.reading.delimiter}
        given = [self.spelled(name, value) for name, value in named.items() if value is not None]
        # In words, since a table may have been packed from Python and be predicted from with flags.
        return f"; it was read as in training, with {self.spelled.together(*given)}: give others" if given else ""

    def _converted(self, columns: Sequence[Column], batch: TableBatch) -> tuple[NDArray[np.float32], list[str]]:
        """Return the scaled numbers of rows, (n, columns), and for each why it cannot be used, empty if it can."""
        values = np.stack([batch.numbers(column, self.reading.decimal) for column in columns], axis=1)
        numbers = scaled(values, columns)
        # A missing number is replaced, but a text that is not a number is bad even so.
        is_bad = ~np.isfinite(numbers)
        for place, column in enumerate(columns):
            is_bad[:, place] |= batch.is_odd(column, values[:, place])
        problems = [""] * batch.count
        for row in np.flatnonzero(is_bad.any(axis=1)).tolist():
            place = int(np.argmax(is_bad[row]))
            column, value = columns[place], float(values[row, place])
            is_missing = bool(batch.columns[column.name].is_missing[row])
            text = None if is_missing or not np.isnan(value) else batch.columns[column.name].at(row)
            others = [columns[other].name for other in np.flatnonzero(is_bad[row])[1:]]
            problems[row] = f"{batch.place(row, column.name)}: {self._problem(column, value, text)}{too(others)}"
        return numbers, problems

    def _problem(self, column: Column, value: float, text: str | None) -> str:
        """Return the problem with a value, which is a text that has no number, a missing value, or a number."""
        if text is not None:
            return self._new_name(column, text) if column.categories else self._oddity(column, text)
        if np.isnan(value):
            return "is missing: expected a value"
        if np.isinf(value):
            return "is infinite: expected a finite number"
        return (
            f"{value!r} is {abs(value - column.mean) / column.std:.1e} deviations of the training set from its mean, "
            "more than float32 holds: expected a number as in training"
        )

    def _oddity(self, column: Column, text: str) -> str:
        """Return why a text is none of the numbers of a column, and what to type if another reading makes it one."""
        options = self._options
        shown, other = one_line(text, 60), "." if options.decimal == "," else ","
        if column.kind is ColumnKind.NUMBER and not np.isnan(numbers_of(pa.array([text]), other)).any():
            begins = f"the {'comma' if other == ',' else 'point'} begins its fraction"
            return f"{shown!r} is not a number: give {options.spelled('decimal', other)} if {begins}"
        fact = f"{shown!r} is not {EXPECTED[column.kind]}, as all values were in training"
        if column.missing is None:
            return fact
        return f"{fact}: write it as one, or give {options.spelled('na', [text])} if it stands for a missing value"

    @staticmethod
    def _new_name(column: Column, text: str) -> str:
        count = len(column.categories)
        there = ", ".join(one_line(each, 20) or MISSING_TEXT for each in column.categories[:MOST_NAMED])
        more = f", … ({count} in all)" if count > MOST_NAMED else ""
        return f"{one_line(text, 60)!r} did not occur in training: expected one of {there}{more}"
