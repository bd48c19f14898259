"""Tables as sources, through pyarrow: batches of some thousand rows, and the values of each of their columns.

The values of a batch are looked at once for each different one: a column is a list of these, and an index for each row.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
from numpy.typing import NDArray

from lockstep.common.data.columns import LONGEST_TEXT, Column, ColumnKind, Floats
from lockstep.common.errors import DataError, nearest
from lockstep.common.files.sanitize import one_line
from lockstep.packing.options import PackOptions
from lockstep.packing.texts import (
    MISSING_TEXTS,
    as_numpy,
    booleans_of,
    dates_of,
    exact_name,
    names_of,
    numbers_of,
    text_array,
)

#: Rows that are read at once.
ROWS = 2**14
#: Columns that a message names.
MOST_NAMED = 12
#: Called with the bytes or rows of the source that have been read since it was called last.
Advance = Callable[[int], None]
#: Returns rows of the source with these columns, with their file and the number of the first, from the beginning.
Opened = Callable[[Sequence[str]], Iterable[tuple[str, int, pa.RecordBatch]]]


class Values(msgspec.Struct, frozen=True):
    """The values of a column of a batch: indices into different ones, -1 for missing ones."""

    indices: NDArray[np.int64]
    #: Texts without blanks around them, or what a type of Arrow's has; may have one twice, or one without an index.
    different: Any
    #: The kind of values that are numbers by their type; None for texts.
    kind: ColumnKind | None = None
    #: Whether their type says that they are names of categories.
    is_declared: bool = False

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """True for each row that has no value."""
        return self.indices < 0

    def numbers(self, kind: ColumnKind, decimal: str) -> Floats:
        """Return the values as numbers of a kind, NaN for missing values and those of another kind."""
        if self.kind is not None:
            of_different = typed_numbers(self.different, self.kind)
            return self.placed(of_different if kind is self.kind else np.full(len(of_different), np.nan))
        readers = {ColumnKind.DATE: dates_of, ColumnKind.BOOLEAN: booleans_of}
        return self.placed(readers[kind](self.different) if kind in readers else numbers_of(self.different, decimal))

    def names(self) -> list[str]:
        """Return the name of each different value."""
        if self.kind is None:
            return [text or "" for text in self.different.to_pylist()]
        if _is_exact(self.different.type):
            return ["" if value is None else exact_name(value) for value in self.different.to_pylist()]
        return names_of(self.kind, typed_numbers(self.different, self.kind).tolist())

    def codes(self, names: Sequence[str]) -> Floats:
        """Return the places of the values among names, that of "" for missing ones; NaN for those without one."""
        codes = {name: float(code) for code, name in enumerate(names)}
        found = self.placed(np.array([codes.get(name, np.nan) for name in self.names()], np.float64))
        return np.where(self.is_missing, codes.get("", np.nan), found)

    def without(self, rows: NDArray[np.bool_]) -> "Values":
        """Return the same, with nothing in some rows."""
        return msgspec.structs.replace(self, indices=np.where(rows, -1, self.indices))

    def placed(self, of_different: Floats) -> Floats:
        """Return for each row what its value has, NaN for missing ones."""
        # A missing value has the index -1, the last one.
        return np.append(of_different, np.nan)[self.indices]

    def at(self, row: int) -> str:
        """Return the name of the value of a row, which is not missing."""
        place = int(self.indices[row])
        return msgspec.structs.replace(self, different=self.different.slice(place, 1)).names()[0]


def columns_called(names: Sequence[str], near: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return `column 'a'` or `columns 'a', 'b' and 'c'`, each with the text that `near` has for it."""
    shown = [f"{one_line(name, 60)!r}{near.get(name, '')}" for name in names[:MOST_NAMED]]
    if len(names) > MOST_NAMED:
        shown.append(f"{len(names) - MOST_NAMED:,} more")
    *others, last = shown
    return f"columns {', '.join(others)} and {last}" if others else f"column {last}"


def too(names: Sequence[str]) -> str:
    """Return the end of a message that refuses a column, with the other ones that are refused; empty without any."""
    return f"; {columns_called(names)} {'is' if len(names) == 1 else 'are'} refused too" if names else ""


class TableBatch(msgspec.Struct, frozen=True):
    """Some rows of a table."""

    #: The file, and the number of the first row as a person counts: a header is row 1.
    named: str
    row: int
    count: int
    columns: dict[str, Values]

    def has_all(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Return whether each row has the values of these columns, (count,)."""
        found = np.ones(self.count, np.bool_)
        for name in names:
            found &= ~self.columns[name].is_missing
        return found

    def numbers(self, column: Column, decimal: str) -> Floats:
        """Return the values of a column as numbers, or the places of their names; NaN for other values, (count,)."""
        values = self.columns[column.name]
        if column.kind is ColumnKind.CATEGORY:
            return values.codes(column.categories)
        numbers = values.numbers(column.kind, decimal)
        if not column.categories:
            return numbers
        known = np.unique(numbers[~np.isnan(numbers)])
        places = {name: float(place) for place, name in enumerate(column.categories)}
        found = np.array([places.get(name, np.nan) for name in names_of(column.kind, known.tolist())] or [np.nan])
        return np.where(np.isnan(numbers), np.nan, found[np.searchsorted(known[:-1], numbers)])

    def is_odd(self, column: Column, numbers: Floats) -> NDArray[np.bool_]:
        """Return whether each row has a value of which none of a column's numbers was made."""
        return np.isnan(numbers) & ~self.columns[column.name].is_missing

    def place(self, row: int, column: str) -> str:
        """Return how a person finds a value of these rows."""
        return f"{self.named}: row {self.row + row}, column {one_line(column, 60)!r}"


@dataclass
class Table:
    """A table whose columns are known."""

    named: str
    options: PackOptions
    #: The columns, with their types.
    schema: pa.Schema
    opened: Opened
    #: How much there is to read, in what the source reports as read.
    length: int
    #: Findings about the form of the source, a line each.
    notes: list[str] = field(default_factory=list)
    #: Whether points may separate thousands in its numbers.
    may_group: bool = False
    #: The names in the source, by those without blanks around them, which a person does not see.
    _raw: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._raw = {name.strip(): name for name in self.schema.names}
        self.schema = pa.schema([each.with_name(each.name.strip()) for each in self.schema], self.schema.metadata)

    def names(self) -> list[str]:
        """Return the names of the columns that have one; DataError if two are the same, or one is long."""
        names = [name for name in self.schema.names if name]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise DataError(f"{self.named}: two columns are called {one_line(twice, 60)!r}: expected different names")
        longest = max(map(len, names), default=0)
        if longest > LONGEST_TEXT:
            raise DataError(
                f"{self.named}: a column's name has {longest:,} characters: expected at most {LONGEST_TEXT}"
            )
        return names

    def without_use(self) -> dict[str, str]:
        """Return the columns that are not learned from unless an option names them, with the reason."""
        index = dict.fromkeys(_pandas_index(self.schema), "the index of a pandas frame")
        return index | ({"": "it has no name"} if "" in self.schema.names else {})

    def check_names(self, columns: Sequence[str]) -> None:
        """Raise DataError for columns that are not there."""
        names = self.names()
        if absent := [name for name in dict.fromkeys(columns) if name not in names]:
            near = {name: nearest(name, names) for name in absent}
            there = ", ".join(self.options.spelled.quoted(one_line(other, 40)) for other in names[:12])
            advice = "" if all(near.values()) else f": expected one of {there}{', …' if len(names) > 12 else ''}"
            if 2 * sum(each.replace(".", "", 1).lstrip("+-").isdigit() for each in names) > len(names):
                advice += "; if row 1 is not a header, write one first"
            raise DataError(f"{self.named}: no {columns_called(absent, near)}{advice}")

    def check(self, columns: Sequence[str]) -> None:
        """Raise DataError for columns that are not there, or whose values are not numbers or texts."""
        self.check_names(columns)
        kinds = dict(zip(self.schema.names, self.schema.types, strict=True))
        if odd := [name for name in columns if not is_usable(kinds[name])]:
            is_, it = ("is", "it") if len(odd) == 1 else ("are", "them")
            types = ", ".join(dict.fromkeys(one_line(str(kinds[name]), 60) for name in odd))
            raise DataError(
                f"{self.named}: {columns_called(odd)} {is_} of type {types}: expected numbers or texts; "
                f"{self.options.spelled('drop', odd)} leaves {it} out"
            )

    def record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """Return rows with their file and the number of the first, from the beginning at each call."""
        for named, row, batch in self.opened([self._raw[name] for name in columns]):
            yield named, row, batch.rename_columns(list(columns))

    def batches(self, columns: Sequence[str]) -> Iterator[TableBatch]:
        """Return the rows, with these columns only; DataError with the place if they cannot be read."""
        own = [text.strip() for text in self.options.na]
        numbers = numbers_of(text_array(own), self.options.decimal)
        missing = (text_array([*MISSING_TEXTS, *own]), numbers[~np.isnan(numbers)])
        declared = {name for name in columns if pa.types.is_dictionary(self.schema.field(name).type)}
        for named, row, batch in self.record_batches(columns):
            found = {
                name: _values_of(values, missing, self.options.decimal, is_declared=name in declared)
                for name, values in zip(columns, batch.columns, strict=True)
            }
            yield TableBatch(named, row, batch.num_rows, found)


def _pandas_index(schema: pa.Schema) -> list[str]:
    """Return the columns that are the index of a pandas frame, by the metadata that pandas writes next to a schema."""
    try:
        known = msgspec.json.decode((schema.metadata or {}).get(b"pandas", b"{}"), type=dict[str, Any])
    except msgspec.DecodeError:
        return []
    # Besides names, it has how a plain index is counted.
    named = known.get("index_columns")
    names = [name.strip() for name in (named if isinstance(named, list) else []) if isinstance(name, str)]
    return [name for name in names if name in schema.names]


# The values of Arrow's columns


def kind_of_type(kind: pa.DataType) -> ColumnKind | None:
    """Return the kind of values that are numbers by their type; None for others."""
    types = pa.types
    if types.is_date(kind) or types.is_timestamp(kind):
        return ColumnKind.DATE
    if types.is_boolean(kind):
        return ColumnKind.BOOLEAN
    is_number = any(is_one(kind) for is_one in (types.is_integer, types.is_floating, types.is_decimal, types.is_null))
    return ColumnKind.NUMBER if is_number else None


def is_text(kind: pa.DataType) -> bool:
    """Tell whether values of a type are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_usable(kind: pa.DataType) -> bool:
    """Tell whether values of a type are numbers, dates or texts."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return is_text(kind) or kind_of_type(kind) is not None


def _values_of(column: Any, missing: tuple[pa.StringArray, Floats], decimal: str, *, is_declared: bool) -> Values:
    """Return the values of a column of Arrow; `missing` has the texts and the numbers that stand for missing values."""
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if pa.types.is_null(column.type):
        return Values(np.full(len(column), -1), pa.nulls(0, pa.float64()), ColumnKind.NUMBER)
    if pa.types.is_floating(column.type):  # few are alike
        indices, values = np.arange(len(column)), column
    else:
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        indices, values = as_numpy(coded.indices.cast(pa.int64()), -1), coded.dictionary
    kind = None
    if is_declared or is_text(values.type):
        # Of categories that are numbers, the names count.
        kind_of = kind_of_type(values.type)
        names = values if kind_of is None else text_array(Values(indices, values, kind_of).names())
        # A dictionary may have nulls as well.
        is_null = as_numpy(values.is_null(), False)
        values = pc.utf8_trim_whitespace(names.cast(pa.string()))
        is_missing = is_null | as_numpy(pc.is_in(values, value_set=missing[0]), False)
        if len(missing[1]):
            is_missing = is_missing | np.isin(numbers_of(values, decimal), missing[1])
    else:
        kind = kind_of_type(values.type)
        numbers = typed_numbers(values, kind)
        is_missing = np.isnan(numbers)
        if kind is ColumnKind.NUMBER and len(missing[1]):
            is_missing = is_missing | np.isin(numbers, missing[1])
    return Values(np.where(np.append(is_missing, True)[indices], -1, indices), values, kind, is_declared)


def _is_exact(kind: pa.DataType) -> bool:
    """Tell whether a type has numbers that float64 does not hold."""
    return bool(pa.types.is_int64(kind) or pa.types.is_uint64(kind) or pa.types.is_decimal(kind))


#: Microseconds in a unit of time; a nanosecond is less than one.
_MICROSECONDS = {"s": 1e6, "ms": 1e3, "us": 1.0}


def typed_numbers(values: Any, kind: ColumnKind | None) -> Floats:
    """Return Arrow's numbers, or dates in microseconds, NaN for nulls: float64 (n,)."""
    types, of = pa.types, values.type
    if kind is not ColumnKind.DATE:
        values = values.cast(pa.float64()) if types.is_decimal(of) or types.is_boolean(of) else values
        return as_numpy(values, np.nan).astype(np.float64, copy=False)
    # Not by pyarrow, which refuses dates that are far away, or have nanoseconds.
    whole = as_numpy(values.cast(pa.int32() if types.is_date32(of) else pa.int64()), 0).astype(np.int64)
    if types.is_date(of):
        moments = whole.astype(np.float64) * (86_400e6 if types.is_date32(of) else 1e3)
    else:
        moments = np.float64(1.0) * (whole // 1000 if of.unit == "ns" else whole * _MICROSECONDS[of.unit])
    return np.where(as_numpy(values.is_null(), False), np.nan, moments)


# Tables that are read again, and ahead


def kept_in(folder: Path, source: Table, advance: Advance) -> Table:
    """Return a table that is read from its source once, and from then on from a new folder that keeps its rows."""
    folder.mkdir()
    paths: list[Path] = []

    def opened(columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        if not paths:
            yield from read(columns)
            return
        row = 1
        for path in paths:
            for batch in pyarrow.ipc.open_stream(pa.memory_map(str(path))):
                yield source.named, row, batch.select(list(columns))
                row += batch.num_rows
        advance(source.length)

    def read(columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        with ExitStack() as files:
            schema = writer = None
            for named, row, batch in source.record_batches(columns):
                if writer is None or batch.schema != schema:  # a new file if the types change
                    files.close()
                    schema = batch.schema
                    paths.append(folder / f"{len(paths)}.arrow")
                    writer = files.enter_context(pyarrow.ipc.new_stream(str(paths[-1]), schema))
                writer.write_batch(batch)
                yield named, row, batch

    return replace(source, opened=opened)


T = TypeVar("T")


def ahead(values: Iterable[T]) -> Iterator[T]:
    """Return values, the next of which a thread makes while the caller uses one: Arrow and NumPy release the lock.

    The thread must not depend on the caller's work.
    """
    source = iter(values)
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, source, None)
        while (value := following.result()) is not None:
            following = thread.submit(next, source, None)
            yield value
