"""What every source has in common: samples go to one set or are divided, and a person is told what became of it."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.folder import FolderManifest
from lockstep.common.data.folder_writer import FolderWriter, PartWriter
from lockstep.common.errors import DataError
from lockstep.packing.division import Division
from lockstep.packing.options import Packed, PackOptions

#: Called with the share of a source that has been read, from 0 to 1.
Watch = Callable[[float], None]


def put(
    writer: FolderWriter, part: str, samples: NDArray[Any], labels: NDArray[Any], marks: NDArray[np.bool_] | None
) -> None:
    """Write samples to a set, or to both as they are marked for the test set."""
    if marks is None:
        part_of(writer, part, samples, labels).append(samples, labels)
        return
    for name, chosen in (("train", ~marks), ("test", marks)):
        # One after the other in place, and not as a copy: they are large.
        for begin, end in runs_of(chosen):
            part_of(writer, name, samples, labels).append(samples[begin:end], labels[begin:end])


def runs_of(marks: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where marks begin and end that follow one another."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


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


def division_of(options: PackOptions) -> Division:
    """Return what divides a source that has no test set."""
    return Division(options.test_split, options.seed)


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
