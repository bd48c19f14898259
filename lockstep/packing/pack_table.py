"""Packs a table: which columns are learned from and predicted, and one set or two."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lockstep.common.data.folder import PARTS, Origin
from lockstep.common.data.folder_writer import dataset_folder
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.common.runtime.version import VERSION
from lockstep.packing.encoding import ColumnEncoder, TableEncoder
from lockstep.packing.options import PackOptions
from lockstep.packing.result import Packed, Watch, division_note
from lockstep.packing.tables import Advance, Table, open_table

#: Opens the table again whose rows are to be read; it is called with what counts bytes.
Opener = Callable[[Advance], Table]


def pack_table_file(source: Path, destination: Path, options: PackOptions, watch: Watch) -> Packed:
    """Pack a CSV or Parquet file, or a folder of them; as `pack`."""
    test = options.test
    openers: list[Opener] = [partial(open_table, source), *([] if test is None else [partial(open_table, test)])]
    return pack_table(str(source), openers, destination, options, watch)


def pack_table(named: str, openers: Sequence[Opener], destination: Path, options: PackOptions, watch: Watch) -> Packed:
    """Pack a table, of which a share of the rows becomes the test set, or two."""
    progress = _Progress(watch)
    tables = [opener(progress.advance) for opener in openers]
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
    return Packed(destination, manifest, (*encoder.notes, *([division_note(options)] if is_divided else [])))


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


class _Progress:
    """How much of all tables has been read."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.whole, self.done = watch, 1, 0

    def advance(self, count: int) -> None:
        self.done += count
        self.watch(min(1.0, self.done / max(1, self.whole)))
