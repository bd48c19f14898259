"""CSV files as tables: what separates their values and how their bytes become texts, and errors that name the row.

Every value is read as a text. The kind of a column follows from all of them, and not from the first rows.
"""

import codecs
import csv
import gzip
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import pyarrow as pa
import pyarrow.csv

from lockstep.common.errors import DataError
from lockstep.common.files.reading import near_file
from lockstep.common.files.sanitize import one_line
from lockstep.packing.files import ARROW, CSV, PARQUET, table_files
from lockstep.packing.options import PackOptions, known_encoding
from lockstep.packing.parquet_table import ParquetTable
from lockstep.packing.tables import Advance, Table, ahead, arrow_table, named_errors
from lockstep.packing.texts import MISSING_TEXTS

#: Bytes of a CSV file that are parsed at once, which no row may exceed; and bytes and rows that show its form.
BLOCK, HEAD_BYTES, HEAD_ROWS = 2**21, 2**16, 20
#: Possible separators, if none is given.
DELIMITERS = (",", ";", "\t", "|")
#: How people call them.
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
#: The first bytes of texts in other encodings than UTF-8.
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


#: The separator of the values of a CSV file, and how its bytes become texts, by pyarrow's name.
CsvForm = tuple[str, str]


def form_of(path: Path, options: PackOptions) -> tuple[CsvForm, list[str]]:
    """Return the form of a file, with a note for each guess; DataError if it is not one that can be read."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    encoding, notes = _encoding_of(path, head, options)
    text = codecs.getincrementaldecoder("utf-8" if encoding == "utf8" else encoding)("replace").decode(head)
    delimiter = options.delimiter or _delimiter_of(path, text.removeprefix("\ufeff"))
    if delimiter != (options.delimiter or _by_name(path)):
        flag = options.spelled("delimiter", delimiter)
        notes.append(f"{one_line(path.name)} has {_NAMES[delimiter]} between its values ({flag})")
    return (delimiter, encoding), notes


def opened(path: Path) -> BinaryIO:
    """Open a file, which may be compressed."""
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _encoding_of(path: Path, head: bytes, options: PackOptions) -> tuple[str, list[str]]:
    if options.encoding is not None:
        return known_encoding(options.encoding), []
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, [f"{one_line(path.name)} is read as {name.upper()} ({options.spelled('encoding', name)})"]
    if b"\0" in head:
        half = len(head) // 2
        zeros = [head[start::2].count(b"\0") for start in (0, 1)]
        advice = "expected texts with a header"
        if max(zeros) > half // 2:
            name = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
            advice = f"it looks like UTF-16: {options.spelled('encoding', name)}"
        raise DataError(f"{one_line(str(path))}: has zero bytes, as no CSV file in UTF-8 has: {advice}")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        raise not_decodable(path, _delimiter_of(path, head.decode("cp1252", "replace")), options) from None
    return "utf8", []


def _by_name(path: Path) -> str:
    return "\t" if path.name.lower().endswith((".tsv", ".tsv.gz")) else ","


def _delimiter_of(path: Path, head: str) -> str:
    """Return what separates the values in the first rows: the usual one, unless another divides all of them alike."""
    default = _by_name(path)
    lines = head.splitlines(keepends=True)
    # The last one may be cut.
    text = "".join(lines[:-1] if len(head) >= HEAD_BYTES // 4 and len(lines) > 1 else lines)
    for delimiter in (default, *DELIMITERS):
        try:
            rows = list(islice(csv.reader(io.StringIO(text), delimiter=delimiter), HEAD_ROWS))
        except csv.Error:
            continue
        counts = {len(row) for row in rows if row}
        if len(counts) == 1 and counts.pop() > 1:
            return delimiter
    return default


def not_decodable(path: Path, delimiter: str, options: PackOptions) -> DataError:
    """Return the error for a file that is not in its encoding: with row, column, and the likely encoding."""
    encoding, guess = options.encoding or "utf-8", "latin-1" if options.encoding == "cp1252" else "cp1252"
    flag, named = options.spelled("encoding", guess), one_line(str(path))
    # Lines cannot be told apart before decoding if a character has several bytes.
    is_wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    with named_errors(path, "a CSV file"), opened(path) as file:
        header: list[str] = []
        lines = iter(lambda: file.readline(BLOCK), b"")
        for row, line in enumerate((line for line in lines if line.strip() and not is_wide), start=1):
            try:
                header = header or next(csv.reader([line.decode(encoding)], delimiter=delimiter))
                line.decode(encoding)
            except UnicodeDecodeError as error:
                before, text = line[: error.start].decode(encoding), line.decode(guess, "replace")
                column = len(next(csv.reader([f"{before}x"], delimiter=delimiter))) - 1
                value = one_line(next(csv.reader([text], delimiter=delimiter))[column], 60)
                known = repr(one_line(header[column].strip(), 60)) if column < len(header) else str(column + 1)
                place = f"{named}: row {row}, column {known}"
                byte = f"byte 0x{line[error.start]:02x} is not {encoding.upper()}"
                return DataError(f"{place}: {byte}: {flag}, if it should read {value!r}")
    return DataError(f"{named}: is not in {encoding.upper()}: expected it, or the name of its encoding, as {flag}")


@dataclass
class CsvTable(Table):
    """CSV files with one header."""

    paths: Sequence[Path]
    _forms: dict[Path, CsvForm] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.paths:
            with named_errors(path, "a CSV file"):
                self._forms[path], notes = form_of(path, self.options)
            self.notes += notes
            self.may_group = self.may_group or (self._forms[path][0] == ";" and self.options.decimal == ".")
        names = self._open(self.paths[0], []).schema.names
        self._take(pa.schema([pa.field(name, pa.string()) for name in names]))

    def _open(self, path: Path, names: Sequence[str]) -> Any:
        """Open a file, with these columns as texts, or with all as pyarrow takes them."""
        delimiter, encoding = self._forms[path]
        convert = pyarrow.csv.ConvertOptions(
            # Other missing values are found later, in the texts.
            null_values=[*MISSING_TEXTS, *self.options.na],
            strings_can_be_null=True,
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=names or None,
        )
        parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        # By one thread, whose errors name the row: parsing is a sixth of the work, and is done ahead of the rest.
        read = pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK, encoding=encoding)
        with named_errors(path, "a CSV file"):
            try:
                return pyarrow.csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert)
            except KeyError:
                first = one_line(self.paths[0].name)
                raise DataError(
                    f"{one_line(str(path))}: has not the columns of {first}: expected the same header"
                ) from None
            except UnicodeError:
                raise not_decodable(path, delimiter, self.options) from None
            except pa.ArrowInvalid as error:
                raise self._described(path, error) from None

    def record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        names = [self._raw[name] for name in columns]
        for path in self.paths:
            # pyarrow would take all rows after a quote that is never closed for one value.
            if (error := self._unclosed(path)) is not None:
                raise error
            row, size = 2, path.stat().st_size
            try:
                for batch in ahead(self._open(path, names)):
                    yield one_line(str(path)), row, batch.rename_columns(list(columns))
                    row += batch.num_rows
                    self.advance(min(size, BLOCK))
            except UnicodeError:
                raise not_decodable(path, self._forms[path][0], self.options) from None
            except (pa.ArrowException, OSError) as fault:
                raise self._described(path, fault) from None

    def _described(self, path: Path, error: Exception) -> DataError:
        """Return pyarrow's error in the form of ours."""
        named, text = one_line(str(path)), one_line(str(error), 200)
        if "invalid UTF8" in text:
            return not_decodable(path, self._forms[path][0], self.options)
        place = re.search(r"Row #(\d+): ?", text)
        if found := re.search(r"Expected (\d+) columns, got (\d+)", text):
            row = f"row {place[1]}" if place else "a row"
            # A quote that is not closed takes the next row's values as well.
            return self._unclosed(path) or DataError(
                f"{named}: {row} has {found[2]} values: expected {found[1]}, as the header"
            )
        if "Empty CSV file" in text:
            return DataError(f"{named}: is empty: expected a header and rows")
        if "straddling object" in text or "out of sync" in text:
            return self._open_quote(path) or DataError(
                f"{named}: a row is longer than {BLOCK:,} bytes: expected shorter ones, each on a line of its own"
            )
        return DataError(f"{named}: cannot be read ({text}): expected a CSV file with a header")

    def _unclosed(self, path: Path) -> DataError | None:
        """Return the error for a quote that is never closed."""
        with named_errors(path, "a CSV file"), opened(path) as file:
            quotes = sum(block.count(b'"') for block in iter(lambda: file.read(BLOCK), b""))
        return self._open_quote(path) if quotes % 2 else None

    def _open_quote(self, path: Path) -> DataError | None:
        """Return the error for a quote that is not closed within a block, or never; None if all are."""
        (delimiter, encoding), row, lines = self._forms[path], 0, list[str]()
        with (
            named_errors(path, "a CSV file"),
            io.TextIOWrapper(opened(path), encoding, errors="replace", newline="") as file,
        ):
            reader = csv.reader(_kept(file, lines), delimiter=delimiter)
            try:
                for values in reader:
                    row += bool(values)
                    last = "".join(lines)
                    lines.clear()
                for _ in csv.reader(io.StringIO(last, newline=""), delimiter=delimiter, strict=True):
                    pass
            except csv.Error as error:
                if "unexpected end" in str(error):
                    row -= 1
                elif "field larger" not in str(error) or not any('"' in line for line in lines):
                    return None
                return DataError(
                    f'{one_line(str(path))}: row {row + 1}: a quote (") is not closed: expected another one at the end '
                    "of its value"
                )
        return None


def _kept(lines: TextIO, into: list[str]) -> Iterator[str]:
    # Not by iteration, which would read a file without a line end as a whole.
    for line in iter(lambda: lines.readline(BLOCK), ""):
        into.append(line)
        yield line


def open_table(path: Path, advance: Advance, options: PackOptions) -> Table:
    """Open a table; DataError if it cannot be read."""
    paths, named = table_files(path), one_line(str(path))
    if not paths:
        known = ", ".join((*CSV, *PARQUET, *ARROW))
        raise DataError(f"{named}: is not a table or a folder of tables: expected a name that ends in one of {known}")
    for each in paths:
        if not os.path.lexists(each):
            near = near_file(path)
            raise DataError(f"no source {one_line(str(path))!r}{near}: expected a file or a folder that exists")
        with named_errors(each, "a table"):
            size = each.stat().st_size
        if not size:
            raise DataError(f"{one_line(str(each))}: is empty: expected a header and rows")
    whole = sum(each.stat().st_size for each in paths)
    if paths[0].name.lower().endswith(CSV):
        return CsvTable(named, advance, whole, options, paths)
    if paths[0].name.lower().endswith(PARQUET):
        return ParquetTable(named, advance, whole, options, paths)
    return arrow_table(named, advance, options, paths)
