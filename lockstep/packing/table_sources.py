"""Opens tables: CSV, Parquet and Arrow files, folders of them, and data frames of any library. pyarrow reads.

Every value of a CSV file is read as a text: the kind of a column follows from all of them, not from the first rows. A
frame gives its rows as Arrow does, without importing what it is of. pandas, Polars, DuckDB and Arrow itself have
`__arrow_c_stream__`; Hugging Face's datasets give tables batch by batch.
"""

import codecs
import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from lockstep.common.errors import DataError
from lockstep.common.files.reading import near_file
from lockstep.common.files.sanitize import one_line
from lockstep.packing.files import ARROW, CSV, PARQUET, table_files
from lockstep.packing.options import PackOptions, known_encoding
from lockstep.packing.tables import ROWS, Advance, Opened, Table, ahead, columns_called, is_text, is_usable
from lockstep.packing.texts import MISSING_TEXTS

#: Bytes of a CSV file that are parsed at once, which no row may exceed; and those that show its separator.
BLOCK, HEAD_BYTES = 2**21, 2**16
#: Possible separators, if none is given, and how people call them.
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
#: The first bytes of texts in other encodings than UTF-8.
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
#: Rows for each byte of a Parquet file with more than `FEW_ROWS`: a class drawn at random takes an eighth of a byte.
ROWS_PER_BYTE, FEW_ROWS = 64, 2**20
#: Errors of Arrow for values that no type of its has; an integer of more than 64 bits is an OverflowError.
_NOT_TAKEN = (pa.ArrowException, TypeError, ValueError, OverflowError)


def open_table(path: Path, advance: Advance, options: PackOptions) -> Table:
    """Open a table, a file or a folder of files; DataError if it cannot be read."""
    paths, named = table_files(path), one_line(str(path))
    if not paths:
        known = ", ".join((*CSV, *PARQUET, *ARROW))
        raise DataError(f"{named}: is not a table or a folder of tables: expected a name that ends in one of {known}")
    for each in paths:
        if not os.path.lexists(each):
            raise DataError(f"no source {named!r}{near_file(path)}: expected a file or a folder that exists")
        with named_errors(each, "a table"):
            size = each.stat().st_size
        if not size:
            raise DataError(f"{one_line(str(each))}: is empty: expected a header and rows")
    for endings, opens in ((CSV, _open_csv), (PARQUET, _open_parquet)):
        if paths[0].name.lower().endswith(endings):
            return opens(named, paths, advance, options)
    with named_errors(paths[0], "an Arrow file"):
        schema = _arrow_reader(paths[0])[0]
    return Table(named, options, schema, _in_memory(named, lambda: _arrow_batches(paths), advance), 0)


def _whole_size(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


@contextmanager
def named_errors(path: Path, kind: str) -> Iterator[None]:
    """Raise DataError in place of other errors for a file that is damaged or cannot be read."""
    named = one_line(str(path))
    try:
        yield
    except (pa.ArrowException, zlib.error, EOFError) as error:
        raise DataError(f"{named}: cannot be read ({one_line(str(error), 200)}): expected {kind}") from None
    except OSError as error:
        reason = one_line(os.strerror(error.errno) if error.errno else str(error), 200)
        raise DataError(f"{named}: cannot be read ({reason}): expected {kind}") from None


# CSV


class CsvForm(msgspec.Struct, frozen=True):
    """The form of a CSV file: what separates its values, its encoding by pyarrow's name, and a note for each guess."""

    delimiter: str
    encoding: str
    notes: list[str]


def _csv_reader(path: Path, form: CsvForm, names: Sequence[str], options: PackOptions) -> Any:
    """Open a file, with the different texts of these columns and their places, or with all as pyarrow takes them."""
    with _csv_errors(path, form.delimiter, options):
        return pyarrow.csv.open_csv(
            path,
            # By one thread, whose errors name the row: parsing is a sixth of the work, and is done ahead of it.
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK, encoding=form.encoding),
            parse_options=pyarrow.csv.ParseOptions(delimiter=form.delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                # Other missing values are found later, in the texts.
                null_values=[*MISSING_TEXTS, *options.na],
                strings_can_be_null=True,
                column_types=dict.fromkeys(names, pa.dictionary(pa.int32(), pa.string())),
                include_columns=names or None,
            ),
        )


def _open_csv(named: str, paths: Sequence[Path], advance: Advance, options: PackOptions) -> Table:
    forms = {path: _form_of(path, options) for path in paths}
    for path, form in forms.items():
        _check_quotes(path, form)

    def opened(columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        for path in paths:
            row, size = 2, path.stat().st_size
            try:
                batches = _csv_reader(path, forms[path], columns, options)
            except KeyError:
                expected = one_line(paths[0].name)
                raise DataError(
                    f"{one_line(str(path))}: has not the columns of {expected}: expected the same header"
                ) from None
            with _csv_errors(path, forms[path].delimiter, options):
                for batch in ahead(batches):
                    yield one_line(str(path)), row, batch
                    row += batch.num_rows
                    advance(min(size, BLOCK))

    first = forms[paths[0]]
    with _csv_errors(paths[0], first.delimiter, options):
        schema = pa.schema([(name, pa.string()) for name in _csv_reader(paths[0], first, [], options).schema.names])
    notes = [note for form in forms.values() for note in form.notes]
    may_group = options.decimal == "." and any(form.delimiter == ";" for form in forms.values())
    return Table(named, options, schema, opened, _whole_size(paths), notes, may_group)


def _form_of(path: Path, options: PackOptions) -> CsvForm:
    """Return the form of a file by its first bytes."""
    with named_errors(path, "a CSV file"), _bytes_of(path) as file:
        head, notes = file.read(HEAD_BYTES), list[str]()
    mark = next((name for start, name in _MARKS if head.startswith(start)), None)
    encoding = known_encoding(options.encoding or mark or "utf-8")
    if options.encoding is None and mark is not None:
        notes.append(f"{one_line(path.name)} is read as {mark.upper()} ({options.spelled('encoding', mark)})")
    if b"\0" in head and encoding == "utf8":
        raise DataError(
            f"{one_line(str(path))}: has zero bytes, as no CSV file in UTF-8 has: expected texts with a header, or the "
            f"name of another encoding, as {options.spelled('encoding', 'utf-16-le')}"
        )
    usual = "\t" if path.name.lower().endswith((".tsv", ".tsv.gz")) else ","
    delimiter = options.delimiter or _delimiter_in(head, encoding, usual)
    if delimiter != (options.delimiter or usual):
        flag = options.spelled("delimiter", delimiter)
        notes.append(f"{one_line(path.name)} has {DELIMITERS[delimiter]} between its values ({flag})")
    return CsvForm(delimiter, encoding, notes)


def _bytes_of(path: Path) -> BinaryIO:
    """Open a file, which may be compressed."""
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _delimiter_in(head: bytes, encoding: str, usual: str) -> str:
    """Return what separates the first rows: the usual one, unless another one divides all of them alike."""
    text = codecs.getincrementaldecoder("utf-8" if encoding == "utf8" else encoding)("replace").decode(head)
    # The last line may be cut.
    whole = text if len(head) < HEAD_BYTES else text[: text.rfind("\n") + 1]
    for delimiter in (usual, *DELIMITERS):
        form = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        try:
            if pyarrow.csv.read_csv(io.BytesIO(whole.encode()), parse_options=form).num_columns > 1:
                return delimiter
        except pa.ArrowInvalid:
            continue
    return usual


@contextmanager
def _csv_errors(path: Path, delimiter: str, options: PackOptions) -> Iterator[None]:
    """Raise DataError in place of pyarrow's errors, whose words name the row; for another encoding, ours."""
    try:
        with named_errors(path, "a CSV file with a header, and as many values in each row"):
            yield
    except UnicodeError:
        raise _not_decodable(path, delimiter, options) from None
    except DataError as error:
        raise (_not_decodable(path, delimiter, options) if "UTF8" in str(error) else error) from None


def _not_decodable(path: Path, delimiter: str, options: PackOptions) -> DataError:
    """Return the error for a file that is not in its encoding: with the line, and the value in the likely encoding."""
    encoding, guess = options.encoding or "utf-8", "latin-1" if options.encoding == "cp1252" else "cp1252"
    named, flag = one_line(str(path)), options.spelled("encoding", guess)
    with named_errors(path, "a CSV file"), _bytes_of(path) as file:
        for row, line in enumerate(iter(lambda: file.readline(BLOCK), b""), start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                before, after = (part.decode(guess, "replace") for part in (line[: error.start], line[error.start :]))
                value = (before.rpartition(delimiter)[2] + after.partition(delimiter)[0]).strip('"\r\n ')
                byte = f"byte 0x{line[error.start]:02x} is not {encoding.upper()}"
                return DataError(f"{named}: line {row}: {byte}: {flag}, if it should read {one_line(value, 60)!r}")
    return DataError(f"{named}: is not in {encoding.upper()}: expected it, or the name of its encoding, as {flag}")


def _check_quotes(path: Path, form: CsvForm) -> None:
    """Raise DataError for a quote that is never closed: pyarrow takes all rows after it for one value, in silence."""
    with named_errors(path, "a CSV file"), _bytes_of(path) as file:
        if not sum(block.count(b'"') for block in iter(lambda: file.read(BLOCK), b"")) % 2:
            return
        file.seek(0)
        row, text = 1, io.TextIOWrapper(file, form.encoding, errors="replace", newline="")
        try:
            for values in csv.reader(text, delimiter=form.delimiter, strict=True):
                row += bool(values)
        except csv.Error:
            raise DataError(
                f'{one_line(str(path))}: row {row}: a quote (") is not closed: expected another one at the end of its '
                "value"
            ) from None


# Parquet and Arrow


def _open_parquet(named: str, paths: Sequence[Path], advance: Advance, options: PackOptions) -> Table:
    def opened(columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        for path in paths:
            file, row, size = _parquet_file(path), 1, path.stat().st_size
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                expected = one_line(paths[0].name)
                raise DataError(f"{one_line(str(path))}: no {columns_called(missing)}: expected those of {expected}")
            with named_errors(path, "a Parquet file"):
                for batch in file.iter_batches(batch_size=ROWS, columns=list(columns)):
                    yield one_line(str(path)), row, batch
                    row += batch.num_rows
                    advance(size * batch.num_rows // max(1, file.metadata.num_rows))

    with named_errors(paths[0], "a Parquet file"):
        schema = pyarrow.parquet.read_schema(paths[0])
    return Table(named, options, schema, opened, _whole_size(paths))


def _parquet_file(path: Path) -> Any:
    """Open a Parquet file: texts as indices, so that a long one is in memory once, however many rows have it."""
    with named_errors(path, "a Parquet file"):
        metadata, size = pyarrow.parquet.read_metadata(path), path.stat().st_size
        if metadata.num_rows > max(FEW_ROWS, ROWS_PER_BYTE * size):
            raise DataError(
                f"{one_line(str(path))}: has {metadata.num_rows:,} rows in {size:,} bytes: expected at most "
                f"{ROWS_PER_BYTE} for each byte; nothing can be learned from rows that are all the same"
            )
        texts = [field.name for field in metadata.schema.to_arrow_schema() if is_text(field.type)]
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        chunks = (group.column(number) for group in groups for number in range(group.num_columns))
        # Arrow does not make indices of these encodings.
        others = {each.path_in_schema for each in chunks if any(name.startswith("DELTA") for name in each.encodings)}
        return pyarrow.parquet.ParquetFile(
            path,
            read_dictionary=[name for name in texts if name not in others],
            # Read as it is needed, and not a row group at once, which may be larger than memory.
            buffer_size=2**20,
            pre_buffer=False,
        )


def _in_memory(named: str, batches: Any, advance: Advance) -> Opened:
    """Return what gives the rows of record batches, which `batches` returns from the beginning at each call."""

    def opened(columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        row = 1
        for whole in batches():
            for begin in range(0, whole.num_rows, ROWS):
                batch = whole.slice(begin, ROWS).select(list(columns))
                yield named, row, batch
                row += batch.num_rows
                advance(batch.num_rows)

    return opened


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


# Data frames


def opened_frame(frame: Any, advance: Advance, options: PackOptions) -> Table:
    """Open a frame of any library; DataError if it has a value that is not a text, a number or a date."""
    if is_lazy(frame):
        raise DataError(f"the {type(frame).__name__} has no rows yet: expected a data frame; call .collect() first")
    named, length = f"the {type(frame).__name__}", len(frame) if hasattr(frame, "__len__") else 1
    if isinstance(frame, pa.RecordBatchReader):
        # It can be read once only.
        frame = frame.read_all()
    if hasattr(frame, "with_format") and hasattr(frame, "features"):
        schema, batches = frame.features.arrow_schema, lambda: _of_hugging_face(frame)
    else:
        try:
            schema = pa.RecordBatchReader.from_stream(frame).schema
        except _NOT_TAKEN:
            frame = _with_texts(named, frame, options)
            schema = frame.schema
        batches = lambda: pa.RecordBatchReader.from_stream(frame)  # noqa: E731
    return Table(named, options, schema, _in_memory(named, batches, advance), length)


def is_lazy(frame: Any) -> bool:
    """Tell whether a frame is a plan of one, as Polars has them."""
    return hasattr(frame, "collect") and not hasattr(frame, "__arrow_c_stream__")


def _with_texts(named: str, frame: Any, options: PackOptions) -> pa.Table:
    """Return a frame whose columns of mixed objects are texts, as in a file; DataError for other objects."""
    if not hasattr(frame, "columns") or not hasattr(frame, "__getitem__"):
        raise DataError(f"{named} has no columns: expected a data frame; pandas.DataFrame([row]) makes one of one row")
    names = [str(name).strip() for name in frame.columns]
    arrays = []
    for name, column in zip(names, frame.columns, strict=True):
        if names.count(name) > 1:
            raise DataError(f"{named}: two columns are called {one_line(name, 60)!r}: expected different names")
        is_used = name in (*options.columns, *options.target) or not options.columns
        values = frame[column] if is_used and name not in options.drop else [None] * len(frame)
        try:
            arrays.append(pa.array(values, from_pandas=True))
        except _NOT_TAKEN:
            arrays.append(pa.array(_texts_of(f"{named}: row", name, values, options), pa.string()))
    return pa.table(arrays, names)


def _texts_of(named: str, name: str, values: Iterable[Any], options: PackOptions) -> Iterator[str | None]:
    for row, value in enumerate(values, start=1):
        is_missing = value is None or type(value).__name__ in ("NAType", "NaTType")
        if not is_missing and not _is_plain(value):
            raise DataError(
                f"{named} {row}, column {one_line(name, 60)!r}: {one_line(repr(value), 60)} is of type "
                f"{type(value).__name__}: expected numbers and texts; {options.spelled('drop', [name])} leaves it out"
            )
        # NaN alone differs from itself.
        yield None if is_missing or value != value else str(value)


def _is_plain(value: Any) -> bool:
    """Tell whether an object is a text, a number or a date."""
    try:
        return isinstance(value, int) or is_usable(pa.scalar(value).type)
    except _NOT_TAKEN:
        return False


def _of_hugging_face(frame: Any) -> Iterator[pa.RecordBatch]:
    names = {name: list(feature.names) for name, feature in frame.features.items() if getattr(feature, "names", None)}
    for table in frame.with_format("arrow").iter(batch_size=ROWS):
        for name, texts in names.items():
            at = table.schema.get_field_index(name)
            codes = table.column(name).combine_chunks().cast(pa.int32())
            table = table.set_column(at, name, pa.DictionaryArray.from_arrays(codes, pa.array(texts)))
        yield from table.to_batches()
