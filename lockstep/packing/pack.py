"""Packs a source into a dataset folder, whatever it is, with flat memory however large it is."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.folder import MANIFEST, FolderManifest, Origin
from common.data.folder_writer import FolderWriter, PartWriter, dataset_folder
from common.errors import DataError
from common.version import VERSION
from lockstep.packing.arrays import ArraySource, is_array_source, open_arrays
from lockstep.packing.division import STRETCH, Division
from lockstep.packing.options import Packed, PackOptions

#: Called with the share of a source that has been read, from 0 to 1.
Watch = Callable[[float], None]


def pack(source: str, destination: Path, options: PackOptions, watch: Watch = lambda share: None) -> Packed:
    """Pack a source into a new folder; DataError if it cannot be done, and nothing is left of it then."""
    if (Path(source) / MANIFEST).is_file():
        raise DataError(f"{source!r} is packed already: train on it with --data {source}")
    if is_array_source(source):
        return pack_arrays(source, destination, options, watch)
    if not os.path.lexists(source):
        raise DataError(f"no source {source!r}: expected a file or a folder that exists, or 'mnist'")
    raise DataError(f"{source!r} is of a kind that is not known: expected .npz, .npy, or a folder of IDX files")


def pack_arrays(source: str, destination: Path, options: PackOptions, watch: Watch) -> Packed:
    """Pack arrays, as they are."""
    if options.test is not None:
        raise DataError("--test is for tables and pictures: expected x_test and y_test next to x_train and y_train")
    with dataset_folder(destination) as writer, open_arrays(source, options.labels) as opened:
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
        division = Division(options.test_split, options.seed) if opened.test is None else None
        for samples, labels in each.batches(STRETCH):
            converted = as_dtype(samples, options.dtype)
            put(writer, ("train", "test")[number], converted, labels, division)
            is_real.add(labels.dtype == np.float32)
            highest = max(highest, int(labels.max())) if labels.dtype == np.int64 else highest
            done += samples.nbytes
            watch(min(1.0, done / whole))
    if len(is_real) == 2:
        raise DataError(
            "the labels of one set are real numbers, those of the other integers: expected one kind in both"
        )
    return 0 if True in is_real else 1 + highest


def put(
    writer: FolderWriter, part: str, samples: NDArray[Any], labels: NDArray[Any], division: Division | None
) -> None:
    """Write samples to a set, or to both as they are divided."""
    if division is None:
        part_of(writer, part, samples, labels).append(samples, labels)
        return
    marks = division.marks(len(labels))
    for name, chosen in (("train", ~marks), ("test", marks)):
        part_of(writer, name, samples, labels).append(samples[chosen], labels[chosen])


def part_of(writer: FolderWriter, name: str, samples: NDArray[Any], labels: NDArray[Any]) -> PartWriter:
    """Return a set that is being written; it is begun with the first samples."""
    if name not in writer.parts:
        writer.open_part(name, samples.dtype, samples.shape[1:], labels.dtype, labels.shape[1:])
    part = writer.parts[name]
    if part.samples.row_shape != samples.shape[1:] or part.samples.dtype != samples.dtype:
        raise DataError(
            f"{name} samples of {samples.dtype} {samples.shape[1:]} after {part.samples.dtype} "
            f"{part.samples.row_shape}: expected one kind"
        )
    return part


def as_dtype(samples: NDArray[Any], dtype: str | None) -> NDArray[Any]:
    """Return samples in the dtype that was asked for; bytes as floats are from 0 to 1, as in pictures."""
    if dtype is None or samples.dtype == dtype or samples.dtype == np.int32:
        return samples
    if dtype == "float32":
        return samples.astype(np.float32) / np.float32(255.0)
    raise DataError("--dtype uint8 of samples that are real numbers would lose their digits: expected float32")


def division_note(options: PackOptions) -> str:
    """Return what a person should know of a test set that was taken out of the samples."""
    return f"the test set is {options.test_split:.0%} of it, drawn by seed {options.seed} (--test-split, --seed)"


def packed_of(destination: Path, manifest: FolderManifest, notes: Iterable[str] = ()) -> Packed:
    """Return what became of a source."""
    info = manifest.train.info
    return Packed(
        folder=destination,
        kind=manifest.kind,
        train=info.samples,
        test=manifest.test.info.samples,
        sample_shape=tuple(info.sample_shape),
        dtype=str(np.dtype(info.images_dtype)),
        classes=manifest.classes,
        class_names=tuple(manifest.class_names),
        notes=tuple(notes),
    )


def lines(packed: Packed) -> Iterator[str]:
    """Return what a person is to read of it."""
    yield f"packed {packed.train:,} samples to train on and {packed.test:,} to test with into {packed.folder}"
    shape = " x ".join(map(str, packed.sample_shape))
    kinds = f"{packed.classes} classes" if packed.classes else "real numbers to predict"
    names = f": {', '.join(packed.class_names[:10])}{', …' if len(packed.class_names) > 10 else ''}"
    yield f"each is {shape} of {packed.dtype}; {kinds}{names if packed.class_names else ''}"
    yield from packed.notes
