"""Dataset folders for tests: what is packed is what the arrays are."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.folder import PARTS, Origin
from lockstep.common.data.folder_writer import FolderWriter, dataset_folder

ORIGIN = Origin(source="a test", options={}, version="0")

#: Samples and labels.
Pair = tuple[NDArray[Any], NDArray[Any]]


def write_parts(writer: FolderWriter, train: Pair, test: Pair, *, at_once: int = 7) -> None:
    """Write both sets, some rows at a time."""
    for name, (samples, labels) in zip(PARTS, (train, test), strict=True):
        for begin in range(0, len(samples), at_once):
            writer.append(name, samples[begin : begin + at_once], labels[begin : begin + at_once])


def write_folder(folder: Path, train: Pair, test: Pair, classes: int, names: tuple[str, ...] = ()) -> Path:
    """Write a dataset folder, and return it."""
    with dataset_folder(folder) as writer:
        write_parts(writer, train, test)
        writer.finish(kind="arrays", classes=classes, origin=ORIGIN, class_names=list(names))
    return folder


def folder_of(data: TrainTest, folder: Path) -> Path:
    """Write a folder with the data of a set in memory."""
    train, test = ((part.images[:], part.labels) for part in (data.train, data.test))
    return write_folder(folder, train, test, data.train.classes)
