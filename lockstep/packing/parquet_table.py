"""Parquet files as tables; the sizes of their pages, by the headers, before any is decoded: 33 kB may become 4 GB.

pyarrow reads what a file's footer says, which may be a lie, and decodes whatever the header of a page asks for. These
headers are structs in Thrift's compact protocol (https://github.com/apache/parquet-format, `PageHeader`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.tables import ROWS, Table, columns_called, named_errors

#: Bytes that the largest page of each column may take together, and the texts of the rows that are decoded at once.
MOST_PAGES, MOST_TEXTS = 2**26, 2**25
#: Times the size of its file that pages may take too: large files have wide tables, and machines with more memory.
MOST_TIMES = 4
#: Rows for each byte of a file with more than `FEW_ROWS`: a class drawn at random alone takes an eighth of a byte.
ROWS_PER_BYTE, FEW_ROWS = 64, 2**20
#: Bytes of a page's header, which may have the smallest and the largest value, and structs in one another.
_MOST_HEADER, _DEEPEST = 2**20, 8
#: Of `PageHeader`: its sizes, and the kinds of pages by the field of their header, with the field of the encoding.
_UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8
_ENCODINGS = {_DATA: 2, _DATA_V2: 4}
#: The encoding in which a text may begin with all of the text before it.
_SHARES_BEGINNINGS = 7


@dataclass
class ParquetTable(Table):
    """Parquet files with the same columns."""

    paths: Sequence[Path]

    def __post_init__(self) -> None:
        self._take(self._open(self.paths[0]).schema_arrow)

    def _open(self, path: Path) -> Any:
        with named_errors(path, "a Parquet file"):
            # Read as it is needed, and not a row group at once, which may be larger than memory.
            return pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)

    def record_batches(self, columns: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        for path in self.paths:
            file, row, size = self._open(path), 1, path.stat().st_size
            named = one_line(str(path))
            raw = [self._raw[name] for name in columns]
            if missing := [name for name in raw if name not in file.schema_arrow.names]:
                expected = one_line(self.paths[0].name)
                raise DataError(f"{named}: no {columns_called(missing)}: expected those of {expected}")
            rows = max(1, file.metadata.num_rows)
            try:
                at_once = rows_at_once(path, file.metadata, raw, ROWS)
                for batch in file.iter_batches(batch_size=at_once, columns=raw):
                    yield named, row, batch.rename_columns(list(columns))
                    row += batch.num_rows
                    self.advance(size * batch.num_rows // rows)
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"{named}: damaged from row {row} on ({one_line(str(error), 120)}): expected a Parquet file"
                ) from None


#: The largest page of a column, and what its longest text may have, in bytes.
PageSizes = tuple[int, int]


def rows_at_once(path: Path, metadata: Any, columns: Sequence[str], most: int) -> int:
    """Return how many rows of these columns fit into memory together, at most `most`.

    `metadata` is pyarrow's of the file. Raises DataError if the pages do not fit.
    """
    named, size = one_line(str(path)), path.stat().st_size
    if metadata.num_rows > max(FEW_ROWS, ROWS_PER_BYTE * size):
        raise DataError(
            f"{named}: has {metadata.num_rows:,} rows in {size:,} bytes: expected at most {ROWS_PER_BYTE} for each "
            "byte; nothing can be learned from rows that are all the same"
        )
    if not metadata.num_rows:
        return most
    sizes: dict[str, PageSizes] = {}
    with path.open("rb") as file:
        for chunk in _chunks(metadata):
            name = chunk.path_in_schema
            if name in columns:
                sizes[name] = _joined(sizes.get(name, (0, 0)), _sizes_of(named, file, chunk))
    pages, texts = (sum(each[place] for each in sizes.values()) for place in (0, 1))
    if pages > max(MOST_PAGES, MOST_TIMES * size):
        raise DataError(
            f"{named}: {size:,} bytes of file become pages of {pages:,} bytes: expected at most {MOST_PAGES:,}; write "
            "it again with smaller pages, or as CSV"
        )
    return int(max(1, min(most, MOST_TEXTS // max(1, texts))))


def _chunks(metadata: Any) -> Iterator[Any]:
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        yield from map(group.column, range(group.num_columns))


def _joined(one: PageSizes, other: PageSizes) -> PageSizes:
    return max(one[0], other[0]), max(one[1], other[1])


def _sizes_of(named: str, file: BinaryIO, chunk: Any) -> PageSizes:
    """Return the sizes of a column's pages in a row group."""
    begin, found = chunk.data_page_offset, (0, 0)
    if chunk.dictionary_page_offset is not None:
        begin = min(begin, chunk.dictionary_page_offset)
    end = begin + chunk.total_compressed_size
    try:
        while begin < end:
            header, length = _header_at(file, begin)
            found = _joined(found, _sizes_in(header, is_text=chunk.physical_type == "BYTE_ARRAY"))
            begin += length + _size(header, _COMPRESSED)
    except (IndexError, ValueError, OSError) as error:
        raise DataError(f"{named}: damaged at byte {begin:,} ({error}): expected a Parquet file") from None
    return found


def _sizes_in(header: dict[int, Any], *, is_text: bool) -> PageSizes:
    size = _size(header, _UNCOMPRESSED)
    encodings = [_struct(header, kind).get(field) for kind, field in _ENCODINGS.items()]
    is_shared = _SHARES_BEGINNINGS in encodings
    # Other texts are as long in memory as in their page.
    return size, size if is_text and (_DICTIONARY in header or is_shared) else 0


def _struct(header: dict[int, Any], field: int) -> dict[int, Any]:
    found = header.get(field, {})
    if not isinstance(found, dict):
        raise ValueError(f"field {field} of a page's header is not a struct")
    return found


def _size(header: dict[int, Any], field: int) -> int:
    size = header.get(field, -1)
    if not (isinstance(size, int) and 0 <= size < 2**31):
        raise ValueError(f"a page of {size} bytes")
    return int(size)


def _header_at(file: BinaryIO, begin: int) -> tuple[dict[int, Any], int]:
    """Return the header of a page, and its length."""
    file.seek(begin)
    data = file.read(2**12)
    try:
        reader = _CompactReader(data)
        return reader.struct(), reader.at
    except IndexError:
        reader = _CompactReader(data + file.read(_MOST_HEADER - len(data)))
        return reader.struct(), reader.at


class _CompactReader:
    """Reads a struct of Thrift's compact protocol from the beginning of some bytes; missing bytes are an IndexError.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = data
        self._depth = 0

    def struct(self) -> dict[int, Any]:
        """Return the fields by their numbers; texts are None."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError("too many structs in one another")
        fields, number = dict[int, Any](), 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15)
        self._depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2:
                return kind == 1
            case 4 | 5 | 6:
                return self._integer()
            case 3:
                return self._byte()
            case 7:
                return self._skip(8)
            case 8:
                return self._skip(self._varint())
            case 9 | 10:
                return self._items()
            case 12:
                return self.struct()
        raise ValueError(f"a field of type {kind}")

    def _items(self) -> None:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        for _ in range(count):
            # In a list, a boolean has a byte.
            self._byte() if head & 15 in (1, 2) else self._value(head & 15)

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self._data):
            raise IndexError("ends within a page's header")

    def _varint(self) -> int:
        found = shift = 0
        while True:
            byte = self._byte()
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found
            if shift > 63:
                raise ValueError("an integer of more than 64 bits")

    def _integer(self) -> int:
        found = self._varint()
        return (found >> 1) ^ -(found & 1)
