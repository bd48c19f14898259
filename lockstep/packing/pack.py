"""Packs a source into a dataset folder, whatever it is, with flat memory however large it is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.array_source import is_array_source, open_arrays, unknown_folder
from lockstep.common.data.folder import MANIFEST, PARTS, Kind
from lockstep.common.data.folder_writer import FolderWriter, dataset_folder
from lockstep.common.data.mapped import MAX_FILE_BYTES
from lockstep.common.errors import DataError
from lockstep.common.files.reading import near_file
from lockstep.common.files.sanitize import one_line
from lockstep.packing.files import has_pictures, table_files
from lockstep.packing.options import Packed, PackOptions, SampleSource, Watch
from lockstep.runs.own_command import demand


def pack(source: str, destination: Path, options: PackOptions, watch: Watch = lambda share: None) -> Packed:
    """Pack a source into a new folder; DataError if it cannot be done, and nothing is left of it then."""
    kind = kind_of(source)
    options.check_kind(kind, source)
    if kind == "table":
        demand("pyarrow", "data", f"packing {source}")
        # Imported here and below, since the extra may not be installed.
        from lockstep.packing.pack_table import pack_table_file

        return pack_table_file(Path(source), destination, options, watch)
    with dataset_folder(destination) as writer, _opened(kind, source, options) as opened:
        manifest = writer.finish(
            kind=kind,
            classes=_write(writer, opened, options, watch),
            origin=options.origin(source),
            class_names=[one_line(name) for name in opened.class_names],
        )
    division = [] if opened.test is not None else [options.division_note()]
    return Packed(destination, manifest, (*opened.notes(), *division))


def plan_lines(source: str, options: PackOptions, watch: Watch = lambda share: None) -> list[str]:
    """Return what a table's columns would be taken for, a line each, and write nothing; DataError as `pack`."""
    if kind_of(source) != "table":
        raise DataError(f"--dry-run of {one_line(source)!r}: expected a table, whose columns it shows; pack it without")
    demand("pyarrow", "data", f"reading {source}")
    from lockstep.packing.pack_table import table_file_plan

    return list(table_file_plan(Path(source), options, watch))


@contextmanager
def _opened(kind: Kind, source: str, options: PackOptions) -> Iterator[SampleSource]:
    if kind == "pictures":
        demand("pillow", "data", f"packing {source}")
        from lockstep.packing.pictures import find_pictures

        yield find_pictures(Path(source), options)
        return
    if options.test is not None:
        raise DataError("--test is for tables and pictures: expected x_test and y_test next to x_train and y_train")
    with open_arrays(source, options.labels, MAX_FILE_BYTES) as arrays:
        yield SampleSource(arrays.train, arrays.test, arrays.classes)


def kind_of(source: str) -> Kind:
    """Return what a source is; DataError if it is nothing that can be packed."""
    path = Path(source)
    if (path / MANIFEST).is_file():
        raise DataError(f"{source!r} is packed already: train on it with --data {source}")
    if is_array_source(source):
        return "arrays"
    if not os.path.lexists(path):
        raise DataError(f"no source {source!r}{near_file(path)}: expected a file or a folder that exists, or 'mnist'")
    if table_files(path):
        return "table"
    if has_pictures(path):
        return "pictures"
    if path.is_dir():
        raise unknown_folder(path)
    raise DataError(
        f"{source!r} is of a kind that is not known: expected .csv, .parquet, .npz, .npy, a folder of these or of IDX "
        "files, or a folder of pictures with a folder for each class"
    )


def _write(writer: FolderWriter, source: SampleSource, options: PackOptions, watch: Watch) -> int:
    """Write both sets, the second of which is divided from the first if there is one only; return how many classes."""
    sets = [source.train] if source.test is None else [source.train, source.test]
    whole, done, classes = sum(map(len, sets)), 0, source.classes
    for name, each in zip(PARTS, sets, strict=False):
        marks = options.division().marks(len(each)) if source.test is None else None
        for samples, labels in each.batches():
            samples = as_dtype(samples, options.dtype)
            begin, done = done, done + len(labels)
            if marks is None:
                writer.append(name, samples, labels)
            else:
                chosen = marks[begin:done]
                writer.append("train", samples[~chosen], labels[~chosen])
                writer.append("test", samples[chosen], labels[chosen])
            if labels.dtype == np.int64:
                classes = max(classes, 1 + int(labels.max()))
            watch(min(1.0, done / whole))
    if classes == 1:
        raise DataError("the labels have one class only, 0: expected at least two to tell apart")
    return classes


def as_dtype(samples: NDArray[Any], dtype: str | None) -> NDArray[Any]:
    """Return samples in the dtype that was asked for; bytes as floats are from 0 to 1, as in pictures."""
    if dtype is None or samples.dtype == dtype or samples.dtype == np.int32:
        return samples
    if dtype == "float32":
        return samples.astype(np.float32) / np.float32(255.0)
    raise DataError("--dtype uint8 of samples that are real numbers would lose their digits: expected float32")
