"""Packs a table: which columns are learned from and predicted, and one set or two."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.common.data.folder import PARTS
from lockstep.common.data.folder_writer import dataset_folder
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.encoding import TableEncoder
from lockstep.packing.options import COLUMN_LISTS, Packed, PackOptions, ReadProgress, Watch
from lockstep.packing.survey import LARGEST, TablePlan, survey
from lockstep.packing.table_sources import open_table, opened_frame
from lockstep.packing.tables import Table, columns_called, kept_in

#: Columns that packing shows.
MOST_LINES = 30


def pack_table_file(source: Path, destination: Path, options: PackOptions, watch: Watch) -> Packed:
    """Pack a CSV or Parquet file, or a folder of them; as `pack`."""
    progress = ReadProgress(watch)
    return pack_table(str(source), opened_files(source, options, progress), destination, options, progress)


def table_file_plan(source: Path, options: PackOptions, watch: Watch) -> Iterator[str]:
    """Return what packing would make of a table, a line each; nothing is written. DataError as `pack`."""
    progress = ReadProgress(watch)
    tables = opened_files(source, options, progress)
    plan = planned(tables, options, progress, passes=1)
    trains, tests = _divided(plan, options)
    yield f"{source} has {trains:,} rows to train on and {tests:,} to test with; nothing was written (--dry-run)"
    yield f"each is {plan.inputs} of float32"
    yield from plan.lines(options)
    yield from notes_of(tables, plan, options)


def opened_files(source: Path, options: PackOptions, progress: ReadProgress) -> list[Table]:
    """Open a table, and that for the test set if there is one."""
    return [open_table(path, progress.advance, options) for path in (source, options.test) if path is not None]


def pack_table(
    source: str, tables: Sequence[Table], destination: Path, options: PackOptions, progress: ReadProgress
) -> Packed:
    """Pack a table, of which a share of the rows becomes the test set, or two; `source` is as of `Origin`."""
    with dataset_folder(destination) as writer:
        tables = [kept_in(writer.scratch(str(place)), each, progress.advance) for place, each in enumerate(tables)]
        plan = planned(tables, options, progress, passes=2)
        encoder = TableEncoder(writer, options, plan)
        columns = [each.column.name for each in (*plan.features, *plan.targets)]
        for name, each in zip(PARTS, tables, strict=False):
            encoder.read(name, each.batches(columns), options.division() if len(tables) == 1 else None)
        manifest = encoder.finish(options.origin(source))
    return Packed(destination, manifest, notes_of(tables, plan, options), tuple(plan.lines(options, MOST_LINES)))


def planned(tables: Sequence[Table], options: PackOptions, progress: ReadProgress, passes: int) -> TablePlan:
    """Return what the columns of tables are, which are read so many times; DataError if they cannot be packed."""
    if isinstance(options.missing, float) and abs(options.missing) > LARGEST:
        given = options.spelled("missing", options.missing)
        raise DataError(f"{given} is larger than float32 holds: expected a number up to {LARGEST:.1e}")
    features = _features(tables[0], options)
    for each in tables:
        each.check([*features, *options.target])
    progress.whole = passes * sum(each.length for each in tables)
    plan = survey(tables, features, options)
    trains, tests = _divided(plan, options)
    if not tests:
        found = f"{options.test_split:.0%} of {trains:,} rows is none" if len(tables) == 1 else "it has no rows"
        advice = f"more rows, or a larger {options.spelled('test_split')}" if len(tables) == 1 else "some"
        raise DataError(f"{tables[-1].named}: the test set is empty, because {found}: expected {advice}")
    return plan


def _divided(plan: TablePlan, options: PackOptions) -> tuple[int, int]:
    """Return how many rows there are to train on and to test with."""
    rows, *others = plan.rows
    tests = others[0] if others else int(np.count_nonzero(options.division().marks(rows)))
    return (rows if others else rows - tests), tests


def notes_of(tables: Sequence[Table], plan: TablePlan, options: PackOptions) -> tuple[str, ...]:
    """Return the decisions that a person should know, a line each."""
    notes = [note for each in tables for note in each.notes]
    notes += [each.note for each in (*plan.features, *plan.targets) if each.note]
    if plan.dropped:
        what, rule = "a missing value", options.spelled("missing", "drop")
        if options.is_filled():
            what, rule = "a missing value to predict", "other values are filled"
        notes.append(f"{plan.dropped:,} rows with {what} were left out ({rule})")
    target = plan.targets[0].column
    if names := target.categories:
        named = one_line(target.name, 60)
        notes.append(f"{named!r} is predicted as one of {len(names)} classes ({options.spelled('task')})")
    return (*notes, *([options.division_note()] if len(tables) == 1 else []))


def _features(table: Table, options: PackOptions) -> list[str]:
    """Return the columns that are learned from; DataError for columns that contradict one another."""
    names, spelled = table.names(), options.spelled
    if not options.target:
        there = ", ".join(one_line(name, 40) for name in names[:12])
        raise DataError(
            f"{table.named}: which column is to be predicted? expected {spelled('target', 'COLUMN')}, one of {there}"
            f"{', …' if len(names) > 12 else ''}"
        )
    lists = {option: getattr(options, option) or () for option in COLUMN_LISTS}
    table.check_names([name for chosen in lists.values() for name in chosen])
    for option, chosen in lists.items():
        if twice := [name for name in chosen if chosen.count(name) > 1]:
            raise DataError(f"{spelled(option, list(chosen))}: names {one_line(twice[0], 60)!r} twice: expected once")
    unused = {*options.target, *table.without_use()}
    kept = [name for name in names if name not in unused]
    features = [name for name in options.columns or kept if name not in options.drop]
    if both := [name for name in features if name in options.target]:
        is_ = "is" if len(both) == 1 else "are"
        raise DataError(f"{columns_called(both)} {is_} to be learned from and predicted: expected one of both")
    if not features:
        raise DataError(f"{table.named}: has no column besides the target: expected some to learn from")
    _check_kinds(features, options)
    return features


def _check_kinds(features: Sequence[str], options: PackOptions) -> None:
    """Raise DataError for a column that is said to be of two kinds, or of a kind without being learned from."""
    of_kinds = {option: getattr(options, option) or () for option in ("categories", "one_hot", "numbers")}
    for option, names in of_kinds.items():
        if unused := [name for name in names if name not in (*features, *options.target)]:
            what = f"{columns_called(unused)} {'is' if len(unused) == 1 else 'are'} not learned from"
            raise DataError(f"{options.spelled(option, unused)}: {what}: expected some of those that are")
        for name in names:
            given, named = options.spelled(option, [name]), one_line(name, 60)
            if name in options.target:
                task = options.spelled("task", "numbers" if option == "numbers" else "classes")
                raise DataError(f"{given}: {named!r} is to be predicted: expected {task} for that")
            if others := [other for other, chosen in of_kinds.items() if name in chosen and other != option]:
                raise DataError(f"{given} and {options.spelled(others[0], [name])}: expected one of both")


def pack_frame(data: Any, destination: Path, options: PackOptions) -> Packed:
    """Pack a frame, a pair of frames to train and to test with, or a mapping of both; as `pack`."""
    if isinstance(data, tuple) and (len(data) != 2 or _is_column(data[1])):
        parts = " and ".join(f"a {type(part).__name__}" for part in data)
        raise DataError(
            f"{parts}: expected two data frames, to train and to test with; a target is a column of both, as in "
            "fit(model, x.assign(target=y), target='target') with pandas"
        )
    train, test = data if isinstance(data, tuple) else (data, None)
    if isinstance(data, Mapping):
        train, test = data["train"], next((data[name] for name in ("test", "validation", "val") if name in data), None)
    progress = ReadProgress(lambda share: None)
    tables = [opened_frame(frame, progress.advance, options) for frame in (train, test) if frame is not None]
    return pack_table("", tables, destination, options, progress)


def _is_column(part: Any) -> bool:
    """Tell whether something is one column alone: a series of any library, an array or a list."""
    return isinstance(part, list) or len(getattr(part, "shape", ())) == 1
