"""Tables as sources, through pyarrow: what each has in common; record batches in memory, and a copy on the disk.

A table is read some thousand rows at a time, column by column: numbers as float64 with NaN for missing ones, texts as
indices into a list.
"""

import os
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
    date_name,
    dates_of,
    exact_name,
    has_padded,
    number_name,
    numbers_of,
    text_array,
)

#: Rows that are read at once.
ROWS = 2**14
#: Texts of a batch that are tried before all of them.
FIRST_TEXTS = 16
#: Columns that a message names.
MOST_NAMED = 12
#: Called with the bytes of the source that have been read since it was called last.
Advance = Callable[[int], None]


class TextValues(msgspec.Struct, frozen=True):
    """A column of texts: indices into a list, -1 for missing ones."""

    indices: NDArray[np.int64]
    #: May have one twice, and ones that no index leads to.
    texts: pa.StringArray
    #: Whether their type says that they are names of categories.
    is_declared: bool = False

    def numbers(self, kind: ColumnKind, decimal: str) -> Floats:
        """Return the values as numbers of a kind, NaN for missing and other values."""
        if kind is ColumnKind.DATE:
            found = dates_of(self.texts)
        else:
            found = booleans_of(self.texts) if kind is ColumnKind.BOOLEAN else numbers_of(self.texts, decimal)
        return self.placed(found)

    def as_texts(self) -> "TextValues":
        """Return the values as names, which they are."""
        return self

    def codes(self, names: Sequence[str]) -> Floats:
        """Return the places of the texts among names, that of "" for missing ones; NaN for those without one."""
        codes = {name: float(code) for code, name in enumerate(names)}
        found = self.placed(np.array([codes.get(text, np.nan) for text in self.texts.to_pylist()], np.float64))
        return np.where(self.is_missing, codes.get("", np.nan), found)

    def without(self, rows: NDArray[np.bool_]) -> "TextValues":
        """Return the same, with nothing in some rows."""
        return TextValues(np.where(rows, -1, self.indices), self.texts, self.is_declared)

    def placed(self, of_texts: Floats) -> Floats:
        """Return for each row the value of its text, NaN for missing texts."""
        # A missing text has the index -1, the last one.
        return np.append(of_texts, np.nan)[self.indices]

    def at(self, row: int) -> str:
        """Return the text of a row, which is not missing."""
        return str(self.texts[int(self.indices[row])].as_py())

    def is_whole(self, row: int) -> bool:
        """Tell whether the source has a whole number in a row, which is not missing."""
        return self.at(row).lstrip("+-").isdigit()

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """True for each row that has no value."""
        return self.indices < 0


class NumberValues(msgspec.Struct, frozen=True):
    """A column of numbers, NaN for missing ones."""

    kind: ColumnKind
    values: Floats
    #: Arrow's column, if float64 does not hold all values that its type may have: its names are made of that.
    column: Any

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """True for each row that has no value."""
        return np.isnan(self.values)

    def is_whole(self, row: int) -> bool:
        """Tell whether the source has a whole number in a row, which is not missing, that was not a float64 there."""
        return self.column is not None and str(self.column[row].as_py()).strip().lstrip("+-").isdigit()

    def numbers(self, kind: ColumnKind, decimal: str) -> Floats:
        """Return the values if they are of that kind, NaN for others."""
        return self.values if kind is self.kind else np.full(len(self.values), np.nan)

    def as_texts(self) -> TextValues:
        """Return the numbers as names."""
        if self.column is not None:
            coded = self.column.dictionary_encode()
            indices = as_numpy(coded.indices.cast(pa.int64()), -1)
            return TextValues(np.where(self.is_missing, -1, indices), _as_texts(coded.dictionary))
        known, indices = np.unique(self.values, return_inverse=True)
        # NaN is the last one, if there is one.
        count = len(known) - int(len(known) > 0 and np.isnan(known[-1]))
        names = names_of(self.kind, known[:count].tolist())
        return TextValues(np.where(indices == count, -1, indices), text_array(names))


class NumberTexts(NumberValues, frozen=True):
    """A column of texts that are all numbers, which is found out sooner than what each different text is."""

    missing: "MissingValues"

    @classmethod
    def of(cls, column: Any, missing: "MissingValues") -> "NumberTexts | None":
        """Return texts as numbers; None if one is not a number, or has a zero before it."""
        if missing.decimal != "." or not pa.types.is_string(column.type):
            return None
        try:
            # Names are told from numbers by a few of them: each that is none costs more than ten that are.
            column.slice(0, FIRST_TEXTS).cast(pa.float64())
            values = _as_floats(column.cast(pa.float64()))
        except pa.ArrowInvalid:
            return None
        if np.count_nonzero(np.isnan(values)) != column.null_count or has_padded(column):
            return None
        return cls(ColumnKind.NUMBER, missing.without_numbers(values), column, missing)

    def as_texts(self) -> TextValues:
        """Return the texts that they are."""
        return self.missing.coded(self.column)


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


def names_of(kind: ColumnKind, values: Iterable[float]) -> list[str]:
    """Return the names of values of a kind."""
    if kind is ColumnKind.DATE:
        return list(map(date_name, values))
    if kind is ColumnKind.BOOLEAN:
        return ["true" if value else "false" for value in values]
    return list(map(number_name, values))


class TableBatch(msgspec.Struct, frozen=True):
    """Some rows of a table."""

    #: The file, and the number of the first row as a person counts: a header is row 1.
    named: str
    row: int
    count: int
    columns: dict[str, NumberValues | TextValues]

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
            return values.as_texts().codes(column.categories)
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
class Table(ABC):
    """A table whose columns are known."""

    named: str
    advance: Advance
    #: How much there is to read, in what `advance` counts.
    length: int
    options: PackOptions
    #: The columns, with their types; and their names in the source, by those without blanks around them, which a person
    #: does not see.
    schema: pa.Schema = field(init=False)
    _raw: dict[str, str] = field(init=False, default_factory=dict)
    #: Findings about the form of the source, a line each.
    notes: list[str] = field(init=False, default_factory=list)
    #: Whether points may separate thousands in its numbers.
    may_group: bool = field(init=False, default=False)

    @abstractmethod
    def record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """Return rows with their file and the number of the first, from the beginning at each call."""

    def _take(self, schema: pa.Schema) -> None:
        """Take the columns of the source."""
        self._raw = {name.strip(): name for name in schema.names}
        self.schema = pa.schema([each.with_name(each.name.strip()) for each in schema], schema.metadata)

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
        known = set(names)
        if absent := [name for name in dict.fromkeys(columns) if name not in known]:
            near = {name: nearest(name, names) for name in absent}
            advice = self._advice(names, is_near=all(near.values()))
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

    def _advice(self, names: Sequence[str], *, is_near: bool) -> str:
        there = ", ".join(self.options.spelled.quoted(one_line(other, 40)) for other in names[:12])
        found = "" if is_near else f": expected one of {there}{', …' if len(names) > 12 else ''}"
        numbers = sum(each.replace(".", "", 1).lstrip("+-").isdigit() for each in names)
        return f"{found}; if row 1 is not a header, write one first" if 2 * numbers > len(names) else found

    def batches(self, columns: Sequence[str]) -> Iterator[TableBatch]:
        """Return the rows, with these columns only; DataError with the place if they cannot be read."""
        na = MissingValues.of(self.options)
        for named, row, batch in self.record_batches(columns):
            found = {name: na.values_of(values) for name, values in zip(columns, batch.columns, strict=True)}
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


def _kind_of_type(kind: pa.DataType) -> ColumnKind | None:
    """Return the kind of values that are numbers by their type; None for others."""
    types = pa.types
    if types.is_date(kind) or types.is_timestamp(kind):
        return ColumnKind.DATE
    if types.is_boolean(kind):
        return ColumnKind.BOOLEAN
    is_number = any(is_one(kind) for is_one in (types.is_integer, types.is_floating, types.is_decimal, types.is_null))
    return ColumnKind.NUMBER if is_number else None


def is_usable(kind: pa.DataType) -> bool:
    """Tell whether values of a type are numbers, dates or texts."""
    return _is_text(kind) or _kind_of_type(kind) is not None


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return is_usable(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


class MissingValues(msgspec.Struct, frozen=True):
    """The forms of a missing value, and how the values of a table are read."""

    texts: pa.StringArray
    numbers: Floats
    decimal: str

    @classmethod
    def of(cls, options: PackOptions) -> "MissingValues":
        own = [text.strip() for text in options.na]
        numbers = numbers_of(text_array(own), options.decimal)
        return cls(text_array([*MISSING_TEXTS, *own]), numbers[~np.isnan(numbers)], options.decimal)

    def values_of(self, column: Any) -> NumberValues | TextValues:
        """Return a column of Arrow's as one of ours."""
        kind = _kind_of_type(column.type)
        if kind is None:
            return NumberTexts.of(column, self) or self.coded(column)
        values = _moments(column) if kind is ColumnKind.DATE else _as_floats(column)
        values = self.without_numbers(values) if kind is ColumnKind.NUMBER else values
        return NumberValues(kind, values, column if _is_exact(column.type) else None)

    def without_numbers(self, values: Floats) -> Floats:
        """Return numbers with NaN for those that stand for a missing value."""
        return np.where(np.isin(values, self.numbers), np.nan, values) if len(self.numbers) else values

    def coded(self, column: Any) -> TextValues:
        """Return a column of texts, or one that is coded already, as one of ours."""
        is_declared = pa.types.is_dictionary(column.type)
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.string())
        coded = column if is_declared else column.dictionary_encode()
        indices = as_numpy(coded.indices.cast(pa.int64()), -1)
        texts = pc.utf8_trim_whitespace(_as_texts(coded.dictionary))
        # A dictionary may have nulls as well.
        missing = as_numpy(pc.is_in(texts, value_set=self.texts), False) | as_numpy(texts.is_null(), False)
        if len(self.numbers):
            missing = missing | np.isin(numbers_of(texts, self.decimal), self.numbers)
        return TextValues(np.where(np.append(missing, True)[indices], -1, indices), texts, is_declared)


def _is_exact(kind: pa.DataType) -> bool:
    """Tell whether a type has numbers that float64 does not hold."""
    types = pa.types
    return bool(types.is_int64(kind) or types.is_uint64(kind) or types.is_decimal(kind))


def _as_texts(values: Any) -> pa.StringArray:
    kind = _kind_of_type(values.type)
    if kind is None:
        return values.cast(pa.string())
    if _is_exact(values.type):
        return pa.array([None if value is None else exact_name(value) for value in values.to_pylist()], pa.string())
    floats = _moments(values) if kind is ColumnKind.DATE else _as_floats(values)
    known = np.isfinite(floats)
    names = np.full(len(floats), None, object)
    names[known] = names_of(kind, floats[known].tolist())
    return pa.array(names, pa.string())


def _as_floats(column: Any) -> Floats:
    types, kind = pa.types, column.type
    if types.is_decimal(kind) or types.is_boolean(kind) or types.is_null(kind):
        column = column.cast(pa.float64())
    # Nulls become NaN.
    return as_numpy(column, np.nan).astype(np.float64, copy=False)


#: Microseconds in a unit of time; a nanosecond is less than one.
_MICROSECONDS = {"s": 1e6, "ms": 1e3, "us": 1.0}


def _moments(column: Any) -> Floats:
    """Return dates in microseconds: not by pyarrow, which refuses those that are far away, or have nanoseconds."""
    types, kind = pa.types, column.type
    is_missing = as_numpy(column.is_null(), False)
    whole = as_numpy(column.cast(pa.int32() if types.is_date32(kind) else pa.int64()), 0).astype(np.int64)
    if types.is_date(kind):
        moments = whole.astype(np.float64) * (86_400e6 if types.is_date32(kind) else 1e3)
    else:
        moments = np.float64(1.0) * (whole // 1000 if kind.unit == "ns" else whole * _MICROSECONDS[kind.unit])
    return np.where(is_missing, np.nan, moments)


@dataclass
class StreamTable(Table):
    """Record batches in memory: those of a data frame, or those of a file in Arrow's own formats."""

    schema: pa.Schema
    #: Gives them from the beginning, at each call.
    opened: Callable[[], Iterable[pa.RecordBatch]]

    def __post_init__(self) -> None:
        self._take(self.schema)

    def record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        row = 1
        for whole in self.opened():
            for begin in range(0, whole.num_rows, ROWS):
                batch = whole.slice(begin, ROWS).select([self._raw[name] for name in columns])
                yield self.named, row, batch.rename_columns(list(columns))
                row += batch.num_rows
                self.advance(batch.num_rows)


@dataclass
class KeptTable(Table):
    """A table that is read from its source once, and from then on from a folder in which its rows are kept."""

    source: Table
    folder: Path
    #: Files, a new one where the types change.
    _paths: list[Path] = field(init=False, default_factory=list)

    @classmethod
    def of(cls, source: Table, folder: Path) -> "KeptTable":
        """Return a table whose rows will be kept in a new folder; `source` is opened, and not read yet."""
        kept = cls(source.named, source.advance, source.length, source.options, source, folder)
        kept.schema, kept.notes, kept.may_group = source.schema, source.notes, source.may_group
        folder.mkdir()
        return kept

    def record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        if not self._paths:
            yield from self._read(columns)
            return
        row = 1
        for batch in _arrow_batches(self._paths):
            yield self.named, row, batch.select(list(columns))
            row += batch.num_rows
        self.advance(self.length)

    def _read(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        with ExitStack() as files:
            schema, writer = None, None
            for named, row, batch in self.source.record_batches(columns):
                if writer is None or batch.schema != schema:
                    files.close()
                    schema = batch.schema
                    self._paths.append(self.folder / f"{len(self._paths)}.arrow")
                    writer = files.enter_context(pyarrow.ipc.new_stream(str(self._paths[-1]), schema))
                writer.write_batch(batch)
                yield named, row, batch


def arrow_table(named: str, advance: Advance, options: PackOptions, paths: Sequence[Path]) -> StreamTable:
    """Open files in Arrow's formats; DataError if they cannot be read."""
    with named_errors(paths[0], "an Arrow file"):
        schema = _arrow_reader(paths[0])[0]
    return StreamTable(named, advance, 0, options, schema, lambda: _arrow_batches(paths))


def _arrow_batches(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with named_errors(path, "an Arrow file"):
            yield from _arrow_reader(path)[1]


def _arrow_reader(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Open a file in Arrow's stream or file format, as Hugging Face's datasets has them on disk."""
    source = pa.memory_map(str(path))
    try:
        stream = pyarrow.ipc.open_stream(source)
        return stream.schema, iter(stream)
    except pa.ArrowInvalid:
        file = pyarrow.ipc.open_file(source)
        return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))


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


@contextmanager
def named_errors(path: Path, kind: str) -> Iterator[None]:
    """Raise DataError in place of other errors for a file that is damaged or cannot be read."""
    named = one_line(str(path))
    try:
        yield
    except (pa.ArrowException, zlib.error, EOFError) as error:
        raise DataError(f"{named}: damaged ({one_line(str(error), 120)}): expected {kind}") from None
    except OSError as error:
        reason = one_line(os.strerror(error.errno) if error.errno else str(error), 120)
        raise DataError(f"{named}: cannot be read ({reason}): expected {kind}") from None
