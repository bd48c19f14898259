"""Data frames as sources: whatever gives its rows as Arrow does, without importing what it is of.

pandas, Polars, DuckDB and Arrow itself have `__arrow_c_stream__`; Hugging Face's datasets give tables batch by batch.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from lockstep.common.errors import DataError
from lockstep.packing.options import PackOptions
from lockstep.packing.pack_table import pack_table
from lockstep.packing.result import Packed
from lockstep.packing.tables import ROWS, Advance, StreamTable

#: What pandas calls an index as a column.
_INDEX = "__index_level_"


def pack_frame(data: Any, destination: Path, options: PackOptions) -> Packed:
    """Pack a frame, a pair of frames to train and to test with, or a mapping of both; as `pack`."""
    train, test = data if isinstance(data, tuple) else (data, None)
    if isinstance(data, Mapping):
        train, test = data["train"], next((data[name] for name in ("test", "validation", "val") if name in data), None)
    openers = [partial(_opened, frame) for frame in (train, test) if frame is not None]
    return pack_table(f"a {type(train).__name__}", openers, destination, options, lambda share: None)


def _opened(frame: Any, advance: Advance) -> StreamTable:
    named = f"the {type(frame).__name__}"
    try:
        if _is_dataset(frame):
            schema, batches = frame.features.arrow_schema, _of_hugging_face(frame)
        else:
            batches = pa.RecordBatchReader.from_stream(frame)
            schema = batches.schema
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{named} has a column that Arrow cannot take ({error}): expected numbers and texts") from None
    # Without the index, which pandas sends as a column.
    columns = pa.schema([field for field in schema if not field.name.startswith(_INDEX)])
    return StreamTable(named, advance, len(frame) if hasattr(frame, "__len__") else 1, columns, batches)


def _is_dataset(frame: Any) -> bool:
    """Tell whether a frame is a dataset of Hugging Face's library."""
    return hasattr(frame, "with_format") and hasattr(frame, "features")


def _of_hugging_face(frame: Any) -> Iterator[pa.RecordBatch]:
    names = {name: list(feature.names) for name, feature in frame.features.items() if getattr(feature, "names", None)}
    for table in frame.with_format("arrow").iter(batch_size=ROWS):
        for name, texts in names.items():
            at = table.schema.get_field_index(name)
            codes = table.column(name).combine_chunks().cast(pa.int32())
            table = table.set_column(at, name, pa.DictionaryArray.from_arrays(codes, pa.array(texts)))
        yield from table.to_batches()
