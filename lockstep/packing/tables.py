"""Tables as sources: CSV and Parquet files, whole folders of them, and data frames, through pyarrow.

A table is read some thousand rows at a time, column by column: numbers as float64 with NaN for what is missing, texts
as indices into a list.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
from numpy.typing import NDArray

from lockstep.common.errors import DataError
from lockstep.common.files.did_you_mean import nearest
from lockstep.common.files.sanitize import one_line
from lockstep.packing.files import CSV, PARQUET, table_files
from lockstep.packing.parquet_pages import rows_at_once

#: Bytes of a CSV file that are parsed at once, and rows of other tables.
CSV_BLOCK, ROWS = 2**21, 2**14
#: Called with the bytes of the source that have been read since it was called last.
Advance = Callable[[int], None]


@dataclass(frozen=True)
class TextValues:
    """A column of texts: indices into a list, -1 for what is missing."""

    indices: NDArray[np.int64]
    texts: Sequence[str]


@dataclass(frozen=True)
class TableBatch:
    """Some rows of a table."""

    #: The file, and the number of the first row as a person counts: a header is row 1.
    named: str
    row: int
    count: int
    columns: dict[str, NDArray[np.float64] | TextValues]

    def part(self, begin: int, end: int) -> "TableBatch":
        """Return some of these rows."""
        columns: dict[str, NDArray[np.float64] | TextValues] = {
            name: replace(values, indices=values.indices[begin:end])
            if isinstance(values, TextValues)
            else values[begin:end]
            for name, values in self.columns.items()
        }
        return replace(self, row=self.row + begin, count=end - begin, columns=columns)


@dataclass
class Table(ABC):
    """A table whose columns are known, and whose rows are read once."""

    named: str
    advance: Advance
    #: How much there is to read, in what `advance` counts.
    length: int
    #: The columns, with their types.
    schema: pa.Schema = field(init=False)

    @abstractmethod
    def _record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """Return rows with their file and the number of the first."""

    def names(self) -> list[str]:
        """Return the names of the columns; DataError if two are the same."""
        names = list(self.schema.names)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{self.named}: two columns are called {one_line(twice, 60)!r}: expected different names")
        return names

    def check(self, columns: Sequence[str]) -> None:
        """Raise DataError for a column that is not there, or whose values are not numbers or texts."""
        names = self.names()
        for name in columns:
            if name not in names:
                there = ", ".join(one_line(other, 40) for other in names[:12])
                advice = nearest(name, names) or f": expected one of {there}{', …' if len(names) > 12 else ''}"
                raise DataError(f"{self.named}: no column {one_line(name, 60)!r}{advice}")
            kind = self.schema.field(name).type
            if not (_is_number(kind) or _is_text(kind)):
                raise DataError(
                    f"{self.named}: column {one_line(name, 60)!r} is of type {one_line(str(kind), 60)}: expected "
                    "numbers or texts; say which columns to learn from with --columns"
                )

    def batches(self, columns: Sequence[str]) -> Iterator[TableBatch]:
        """Return the rows, with these columns only; DataError with the place if they cannot be read."""
        for named, row, batch in self._record_batches(columns):
            found = {name: _values(batch.column(name)) for name in columns}
            yield TableBatch(named, row, batch.num_rows, found)


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return any(is_one(kind) for is_one in (*numbers, types.is_null, types.is_date, types.is_timestamp))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _values(column: Any) -> NDArray[np.float64] | TextValues:
    types, kind = pa.types, column.type
    if _is_text(kind):
        column = column.cast(pa.string()) if types.is_string_view(kind) else column
        coded = column if types.is_dictionary(kind) else column.dictionary_encode()
        indices = pc.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        return TextValues(indices, [text if text is not None else "" for text in coded.dictionary.to_pylist()])
    if types.is_date(kind) or types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    elif types.is_decimal(kind) or types.is_boolean(kind) or types.is_null(kind):
        column = column.cast(pa.float64())
    # Nulls become NaN.
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.float64, copy=False)


@dataclass
class CsvTable(Table):
    """CSV files with one header; types are those of the first rows, but that whole numbers may become others."""

    paths: Sequence[Path]

    def __post_init__(self) -> None:
        found = self._open(self.paths[0], None, {}, threads=False).schema
        # A later value may have digits after the point, or be missing in all of the first rows.
        self.schema = pa.schema([pa.field(each.name, _widened(each.type)) for each in found])

    def _open(self, path: Path, columns: Sequence[str] | None, types: dict[str, Any], *, threads: bool) -> Any:
        convert = pyarrow.csv.ConvertOptions(
            strings_can_be_null=True, column_types=types, include_columns=list(columns) if columns else None
        )
        parse = pyarrow.csv.ParseOptions(
            delimiter="\t" if path.name.endswith((".tsv", ".tsv.gz")) else ",", newlines_in_values=True
        )
        read = pyarrow.csv.ReadOptions(use_threads=threads, block_size=CSV_BLOCK)
        with _named_errors(path, "a CSV file"):
            try:
                return pyarrow.csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert)
            except KeyError:
                first = self.paths[0].name
                raise DataError(f"{path}: has not the columns of {first}: expected the same header") from None
            except pa.ArrowInvalid as error:
                raise DataError(f"{path}: {self._described(error)}") from None

    def _record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        types = {name: self.schema.field(name).type for name in columns}
        for path in self.paths:
            size, row = path.stat().st_size, 2
            reader = self._open(path, columns, types, threads=True)
            try:
                for batch in reader:
                    yield str(path), row, batch
                    row += batch.num_rows
                    self.advance(min(size, CSV_BLOCK))
            except pa.ArrowInvalid as error:
                raise self._with_row(path, columns, types, error) from None

    def _with_row(self, path: Path, columns: Sequence[str], types: dict[str, Any], error: Exception) -> DataError:
        """Read a file again by one thread, which knows the row."""
        try:
            for _ in self._open(path, columns, types, threads=False):
                pass
        except pa.ArrowInvalid as again:
            error = again
        return DataError(f"{path}: {self._described(error)}")

    def _described(self, error: Exception) -> str:
        """Return pyarrow's error in the form of ours."""
        text = one_line(str(error), 200)
        place = re.search(r"Row #(\d+): ?", text)
        row = f"row {place[1]}" if place else "a row"
        if found := re.search(r"Expected (\d+) columns, got (\d+)", text):
            return f"{row} has {found[2]} values: expected {found[1]}, as the header"
        if found := re.search(r"In CSV column #(\d+): .*?conversion error to (\w+): (.*)", text):
            names, number = self.schema.names, int(found[1])
            column = one_line(names[number], 60) if number < len(names) else str(number)
            kind = "a number" if found[2] in ("double", "float") else f"a {found[2]}"
            where, value = f"{row}, column {column!r}", found[3].removeprefix("invalid value ")
            return f"{where}: {value} is not {kind}, as in the rows before: correct it, or leave it empty"
        return f"{text[:1].lower()}{text[1:]}: expected a CSV file with a header"


def _widened(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return pa.float64()
    return kind


@dataclass
class ParquetTable(Table):
    """Parquet files with the same columns."""

    paths: Sequence[Path]

    def __post_init__(self) -> None:
        self.schema = self._open(self.paths[0]).schema_arrow

    def _open(self, path: Path) -> Any:
        with _named_errors(path, "a Parquet file"):
            # Read as it is needed, and not a row group at once, which may be larger than memory.
            return pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)

    def _record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        for path in self.paths:
            file, row, size = self._open(path), 1, path.stat().st_size
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise DataError(
                    f"{path}: no column {one_line(missing[0], 60)!r}: expected those of {self.paths[0].name}"
                )
            rows = max(1, file.metadata.num_rows)
            try:
                at_once = rows_at_once(path, file.metadata, columns, ROWS)
                for batch in file.iter_batches(batch_size=at_once, columns=list(columns)):
                    yield str(path), row, batch
                    row += batch.num_rows
                    self.advance(size * batch.num_rows // rows)
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"{path}: damaged from row {row} on ({one_line(str(error), 120)}): expected a Parquet file"
                ) from None


@dataclass
class StreamTable(Table):
    """Record batches that somebody has: a data frame's, or those of a file in Arrow's own formats."""

    schema: pa.Schema
    batches_in_order: Iterable[pa.RecordBatch]

    def _record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        row = 1
        for whole in self.batches_in_order:
            for begin in range(0, whole.num_rows, ROWS):
                batch = whole.slice(begin, ROWS).select(list(columns))
                yield self.named, row, batch
                row += batch.num_rows
                self.advance(batch.num_rows)


def open_table(path: Path, advance: Advance) -> Table:
    """Open a table; DataError if it cannot be read."""
    paths = table_files(path)
    for each in paths:
        if not os.path.lexists(each):
            raise DataError(f"no source {str(path)!r}: expected a file or a folder that exists")
        if not each.stat().st_size:
            raise DataError(f"{each}: is empty: expected a header and rows")
    size = sum(each.stat().st_size for each in paths)
    if paths[0].name.lower().endswith(CSV):
        return CsvTable(str(path), advance, size, paths)
    if paths[0].name.lower().endswith(PARQUET):
        return ParquetTable(str(path), advance, size, paths)
    with _named_errors(paths[0], "an Arrow file"):
        schema = _arrow_reader(paths[0])[0]
    return StreamTable(str(path), advance, 0, schema, _arrow_batches(paths))


def _arrow_batches(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with _named_errors(path, "an Arrow file"):
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


@contextmanager
def _named_errors(path: Path, kind: str) -> Iterator[None]:
    """Raise DataError in place of what pyarrow raises for a file that is damaged or cannot be read."""
    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{path}: damaged ({one_line(str(error), 120)}): expected {kind}") from None
    except OSError as error:
        reason = one_line(error.strerror or str(error), 120)
        raise DataError(f"{path}: cannot be read ({reason}): expected {kind}") from None
