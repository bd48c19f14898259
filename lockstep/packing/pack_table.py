"""Packs a table: which columns are learned from and predicted, and one set or two."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from lockstep.common.data.folder import Origin
from lockstep.common.data.folder_writer import dataset_folder
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.common.runtime.version import VERSION
from lockstep.packing.encoding import TableEncoder
from lockstep.packing.options import Packed, PackOptions
from lockstep.packing.result import Watch, division_note, division_of, packed_of
from lockstep.packing.tables import Advance, Table, open_table

#: Opens the table again whose rows are to be read; it is called with what counts bytes.
Opener = Callable[[Advance], Table]


def pack_table_file(source: Path, destination: Path, options: PackOptions, watch: Watch) -> Packed:
    """Pack a CSV or Parquet file, or a folder of them; as `pack`."""
    return pack_table(
        str(source),
        lambda advance: open_table(source, advance),
        None if options.test is None else lambda advance: open_table(options.test or source, advance),
        destination,
        options,
        watch,
    )


def pack_table(
    named: str, train: Opener, test: Opener | None, destination: Path, options: PackOptions, watch: Watch
) -> Packed:
    """Pack a table, with a test set of its own or a share of the rows."""
    progress = _Progress(watch)
    table = train(progress.advance)
    features = _features(table, options)
    tables = [table] if test is None else [table, test(progress.advance)]
    for each in tables:
        each.check([*features, *options.target])
    progress.whole = sum(each.length() for each in tables)
    with (
        dataset_folder(destination) as writer,
        closing(TableEncoder(writer, options, features, options.target)) as encoder,
    ):
        for name, each in zip(("train", "test"), tables, strict=False):
            division = division_of(options) if test is None else None
            encoder.read(name, each.batches([*features, *options.target]), division)
        classes, names, columns, targets = encoder.finish()
        manifest = writer.finish(
            kind="table",
            classes=classes,
            origin=Origin(source=one_line(named), options=options.texts(), version=VERSION),
            class_names=names,
            columns=columns,
            targets=targets,
        )
    notes = [*encoder.notes, *([division_note(options)] if test is None else [])]
    return packed_of(destination, manifest, notes)


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
