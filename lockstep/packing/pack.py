"""Packs a source into a dataset folder, whatever it is, with flat memory however large it is."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from lockstep.common.data.array_source import ArraySource, is_array_source, open_arrays
from lockstep.common.data.folder import MANIFEST, Origin
from lockstep.common.data.folder_writer import FolderWriter, dataset_folder
from lockstep.common.data.mapped import MAX_FILE_BYTES
from lockstep.common.errors import DataError
from lockstep.common.runtime.version import VERSION
from lockstep.packing.files import has_pictures, table_files
from lockstep.packing.options import Packed, PackOptions
from lockstep.packing.result import Watch, as_dtype, division_note, division_of, packed_of, put
from lockstep.runs.optional_packages import demand


def pack(source: str, destination: Path, options: PackOptions, watch: Watch = lambda share: None) -> Packed:
    """Pack a source into a new folder; DataError if it cannot be done, and nothing is left of it then."""
    path = Path(source)
    match kind_of(source):
        case "arrays":
            return pack_arrays(source, destination, options, watch)
        case "table":
            demand("pyarrow", "data", f"packing {source}")
            # Imported here and below, since the extra may not be installed.
            from lockstep.packing.pack_table import pack_table_file

            return pack_table_file(path, destination, options, watch)
        case "pictures":
            demand("pillow", "data", f"packing {source}")
            from lockstep.packing.pack_pictures import pack_pictures

            return pack_pictures(path, destination, options, watch)


def kind_of(source: str) -> Literal["arrays", "table", "pictures"]:
    """Return what a source is; DataError if it is nothing that can be packed."""
    path = Path(source)
    if (path / MANIFEST).is_file():
        raise DataError(f"{source!r} is packed already: train on it with --data {source}")
    if is_array_source(source):
        return "arrays"
    if not os.path.lexists(path):
        raise DataError(f"no source {source!r}: expected a file or a folder that exists, or 'mnist'")
    if table_files(path):
        return "table"
    if has_pictures(path):
        return "pictures"
    raise DataError(
        f"{source!r} is of a kind that is not known: expected .csv, .parquet, .npz, .npy, a folder of these or of IDX "
        "files, or a folder of pictures with a folder for each class"
    )


def pack_arrays(source: str, destination: Path, options: PackOptions, watch: Watch) -> Packed:
    """Pack arrays, as they are."""
    if options.test is not None:
        raise DataError("--test is for tables and pictures: expected x_test and y_test next to x_train and y_train")
    with dataset_folder(destination) as writer, open_arrays(source, options.labels, MAX_FILE_BYTES) as opened:
        classes = _write_arrays(writer, opened, options, watch)
        origin = Origin(source=source, options=options.texts(), version=VERSION)
        manifest = writer.finish(kind="arrays", classes=classes, origin=origin)
    notes = () if opened.test is not None else (division_note(options),)
    return packed_of(destination, manifest, notes)


def _write_arrays(writer: FolderWriter, opened: ArraySource, options: PackOptions, watch: Watch) -> int:
    """Write both sets, and return the number of classes."""
    sets = [opened.train] if opened.test is None else [opened.train, opened.test]
    whole, done, highest = sum(each.samples.header.data_bytes for each in sets) or 1, 0, opened.classes - 1
    is_real = set[bool]()
    for number, each in enumerate(sets):
        marks = None if opened.test is not None else division_of(options).marks(each.samples.header.shape[0])
        for samples, labels in each.batches():
            chosen = None if marks is None else marks[: len(labels)]
            marks = None if marks is None else marks[len(labels) :]
            put(writer, ("train", "test")[number], as_dtype(samples, options.dtype), labels, chosen)
            is_real.add(labels.dtype == np.float32)
            highest = max(highest, int(labels.max())) if labels.dtype == np.int64 else highest
            done += samples.nbytes
            watch(min(1.0, done / whole))
    if len(is_real) == 2:
        raise DataError(
            "the labels of one set are real numbers, those of the other integers: expected one kind in both"
        )
    if True in is_real:
        return 0
    if not highest:
        raise DataError(f"{opened.train.labels.named}: has one class only, 0: expected at least two to tell apart")
    return 1 + highest
