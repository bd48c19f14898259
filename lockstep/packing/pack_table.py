"""Packs a table: which columns are learned from and predicted, and one set or two.

A table is a file, or a data frame: whatever gives its rows as Arrow does, without importing what it is of. pandas,
Polars, DuckDB and Arrow itself have `__arrow_c_stream__`; Hugging Face's datasets give tables batch by batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lockstep.common.data.folder import PARTS, Origin
from lockstep.common.data.folder_writer import dataset_folder
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.common.runtime.version import VERSION
from lockstep.packing.encoding import ColumnEncoder, TableEncoder
from lockstep.packing.options import Packed, PackOptions, ReadProgress, Watch
from lockstep.packing.tables import ROWS, Advance, StreamTable, Table, open_table


def pack_table_file(source: Path, destination: Path, options: PackOptions, watch: Watch) -> Packed:
    """Pack a CSV or Parquet file, or a folder of them; as `pack`."""
    progress = ReadProgress(watch)
    tables = [open_table(path, progress.advance) for path in (source, options.test) if path is not None]
    return pack_table(str(source), tables, destination, options, progress)


def pack_table(
    named: str, tables: Sequence[Table], destination: Path, options: PackOptions, progress: ReadProgress
) -> Packed:
    """Pack a table, of which a share of the rows becomes the test set, or two."""
    features = _features(tables[0], options)
    columns, is_divided = [*features, *options.target], len(tables) == 1
    for each in tables:
        each.check(columns)
    progress.whole = sum(each.length for each in tables)
    with dataset_folder(destination) as writer:
        encoder = TableEncoder(
            writer,
            options,
            [ColumnEncoder(name, False) for name in features],
            [ColumnEncoder(name, True) for name in options.target],
        )
        for name, each in zip(PARTS, tables, strict=False):
            encoder.read(name, each.batches(columns), options.division() if is_divided else None)
        origin = Origin(source=one_line(named), options=options.texts(), version=VERSION)
        manifest = encoder.finish(origin)
    return Packed(destination, manifest, (*encoder.notes, *([options.division_note()] if is_divided else [])))


def _features(table: Table, options: PackOptions) -> list[str]:
    """Return the columns that are learned from; DataError without a target."""
    names = table.names()
    if not options.target:
        there = ", ".join(one_line(name, 40) for name in names[:12])
        raise DataError(
            f"{table.named}: which column is to be predicted? expected --target COLUMN, one of {there}"
            f"{', …' if len(names) > 12 else ''}"
        )
    table.check(options.target)
    features = list(options.columns) or [name for name in names if name not in options.target]
    if both := [name for name in features if name in options.target]:
        raise DataError(f"column {one_line(both[0], 60)!r} is to be learned from and predicted: expected one of both")
    if not features:
        raise DataError(f"{table.named}: has no column besides what is to be predicted: expected some to learn from")
    return features


#: What pandas calls an index as a column.
_INDEX = "__index_level_"


def pack_frame(data: Any, destination: Path, options: PackOptions) -> Packed:
    """Pack a frame, a pair of frames to train and to test with, or a mapping of both; as `pack`."""
    train, test = data if isinstance(data, tuple) else (data, None)
    if isinstance(data, Mapping):
        train, test = data["train"], next((data[name] for name in ("test", "validation", "val") if name in data), None)
    progress = ReadProgress(lambda share: None)
    tables = [opened_frame(frame, progress.advance) for frame in (train, test) if frame is not None]
    return pack_table(f"a {type(train).__name__}", tables, destination, options, progress)


def opened_frame(frame: Any, advance: Advance) -> StreamTable:
    named = f"the {type(frame).__name__}"
    try:
        if hasattr(frame, "with_format") and hasattr(frame, "features"):
            schema, batches = frame.features.arrow_schema, _of_hugging_face(frame)
        else:
            batches = pa.RecordBatchReader.from_stream(frame)
            schema = batches.schema
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{named} has a column that Arrow cannot take ({error}): expected numbers and texts") from None
    # Without the index, which pandas sends as a column.
    columns = pa.schema([field for field in schema if not field.name.startswith(_INDEX)])
    return StreamTable(named, advance, len(frame) if hasattr(frame, "__len__") else 1, columns, batches)


def _of_hugging_face(frame: Any) -> Iterator[pa.RecordBatch]:
    names = {name: list(feature.names) for name, feature in frame.features.items() if getattr(feature, "names", None)}
    for table in frame.with_format("arrow").iter(batch_size=ROWS):
        for name, texts in names.items():
            at = table.schema.get_field_index(name)
            codes = table.column(name).combine_chunks().cast(pa.int32())
            table = table.set_column(at, name, pa.DictionaryArray.from_arrays(codes, pa.array(texts)))
        yield from table.to_batches()
