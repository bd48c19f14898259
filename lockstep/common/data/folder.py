"""The format of a dataset folder, and how one is opened: a manifest, and an .npy file for each array.

`numpy.load(mmap_mode="r")` opens the arrays; the data of each begins at byte 4096, and rows are of one shape.
`dataset.json` describes them, with a digest of each block, by which a change is found without reading all of it.
Datasets are mapped and not read: their values were checked when they were packed.
"""

import hashlib
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from lockstep.common.data.columns import Column, Real, Scale, Text
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.manifest import PartInfo
from lockstep.common.data.mapped import MappedFile, MappedSamples
from lockstep.common.data.npy import DATA_OFFSET, NpyHeader
from lockstep.common.errors import DataError
from lockstep.common.files.reading import decode, read_regular

#: The file that makes a folder a dataset.
MANIFEST = "dataset.json"
#: Bytes of it: the digests of a terabyte have twenty million.
MAX_MANIFEST_BYTES = 2**26
#: The version of it that is written.
FORMAT: Literal["lockstep dataset 2"] = "lockstep dataset 2"
#: Bytes of a block that has a digest of its own.
BLOCK_BYTES = 2**22

#: A separator of the values of a file.
TAB = "\t"

#: The kinds of sources of a folder.
Kind = Literal["arrays", "pictures", "table"]
#: The sets of a folder, and the arrays of each.
PartName = Literal["train", "test"]
ArrayName = Literal["samples", "labels"]
PARTS: tuple[PartName, ...] = ("train", "test")
ARRAYS: tuple[ArrayName, ...] = ("samples", "labels")

_Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Reading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options with which the values of a table are read, so that those of another one are read alike."""

    #: Texts and numbers that stand for a missing value, besides those that always do.
    na: list[Text] = []
    #: The mark before a number's fraction.
    decimal: Text = "."
    #: The separator of the values of a CSV file; None for the one that each file shows.
    delimiter: Text | None = None
    #: Its encoding; None for UTF-8, or for the one that each file shows.
    encoding: Text | None = None

    def but(self, *, na: Sequence[str] = (), **given: str | None) -> "Reading":
        """Return this with the options given for another table, each that is not None; `na` is added."""
        known = {name: value for name, value in given.items() if value is not None}
        return msgspec.structs.replace(self, na=[*self.na, *na], **known)


class FolderPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One set of a folder, with the SHA-256 of each block of its arrays."""

    info: PartInfo
    samples: list[_Digest]
    labels: list[_Digest]

    def array(self, name: ArrayName) -> tuple[NpyHeader, list[str]]:
        """Return what the file of an array has to begin with, and the digests of its blocks."""
        info = self.info
        if name == "samples":
            return NpyHeader((info.samples, *info.sample_shape), np.dtype(info.images_dtype)), self.samples
        return NpyHeader((info.samples, *info.label_shape), np.dtype(info.labels_dtype)), self.labels


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The source of a dataset."""

    #: Its path, or "mnist"; empty for data that was in memory.
    source: Text
    #: The options of packing that are not the default, by name.
    options: dict[str, Any] = {}
    #: The version of Lockstep that packed it; empty if it was not packed.
    version: Text = ""

    @property
    def test_source(self) -> str:
        """The path of the test set: that of a table or a folder of its own if it was given, or the source."""
        return str(self.options.get("test") or self.source)

    def pack_command(self, destination: str) -> str:
        """Return the command that packs the source again."""
        # The option of a target is repeated: it takes one name, which may have commas.
        flags = [
            flag(name, each)
            for name, value in self.options.items()
            if value is not None
            for each in (value if name == "target" and not isinstance(value, str) else [value])
        ]
        return " ".join(["lockstep pack", shlex.quote(self.source), shlex.quote(destination), *flags])


def flag(name: str, value: Any = None) -> str:
    """Return an option as a person types it: `--name value`, or the name alone without a value."""
    dashed = name.replace("_", "-")
    if value is None or value is True:
        return f"--{dashed}"
    if value is False:
        return f"--no-{dashed}"
    if isinstance(value, list | tuple):
        # A size has two numbers, all other options have texts, or none.
        is_size = all(isinstance(each, int) for each in value)
        value = "x".join(map(str, value)) if is_size else ",".join(map(in_list, value))
    # A tab is not visible.
    return f"--{dashed} {shlex.quote('tab' if value == TAB else str(value))}"


def in_list(name: str) -> str:
    """Return a name for a list with commas, in quotes if it has commas or quotes itself."""
    return '"' + name.replace('"', '""') + '"' if "," in name or '"' in name else name


class Conversion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The way from a source to samples: what else of the same kind needs to become samples as well."""

    #: The format of the folder.
    format: Literal["lockstep dataset 2"] = FORMAT
    #: The kind of the source.
    kind: Kind
    #: 0 if labels are real numbers.
    classes: Annotated[int, Meta(ge=0, le=2**31)]
    #: The names of the classes in the order of their numbers; empty if they have none.
    class_names: list[Text] = []
    #: The columns of a table that samples are made of.
    columns: list[Column] = []
    #: The columns of a table that are predicted; of arrays, in a run, how each number to predict was scaled, or all.
    targets: list[Column] = []
    #: The way in which a table is read.
    reading: Reading = Reading()
    #: The source.
    origin: Origin


class FolderManifest(Conversion, frozen=True, kw_only=True):
    """The content of `dataset.json`."""

    #: Of the training set's values, as `Preparation` has them, and the largest of its values as they are stored.
    mean: Real
    std: Scale
    largest: Real
    block_bytes: Annotated[int, Meta(ge=4096, le=2**26)]
    train: FolderPart
    test: FolderPart

    def part(self, name: PartName) -> FolderPart:
        return self.train if name == "train" else self.test

    def digest(self) -> str:
        """Return the SHA-256 of all that runs depend on: equal for equal bytes, wherever they were packed from."""
        facts = (self.classes, self.mean, self.std, self.block_bytes, self.train, self.test)
        return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def array_file(folder: Path, part: str, array: ArrayName) -> Path:
    return folder / f"{part}-{array}.npy"


def read_manifest(folder: Path) -> FolderManifest:
    """Return the manifest of a dataset folder; DataError if it cannot be read or contradicts itself."""
    path = folder / MANIFEST
    try:
        manifest = decode(read_regular(path, MAX_MANIFEST_BYTES), FolderManifest)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder}: is not a packed dataset: expected a folder that `lockstep pack` wrote") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): expected the manifest of a dataset") from None
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: damaged ({error}): expected what `lockstep pack` writes; pack it again") from None
    for name in PARTS:
        for array in ARRAYS:
            header, digests = manifest.part(name).array(array)
            if len(digests) != -(-header.data_bytes // manifest.block_bytes):
                found = f"{len(digests)} digests for {header.data_bytes} bytes of {name}-{array}"
                raise DataError(f"{path}: {found}: pack it again")
    if manifest.class_names and len(manifest.class_names) != manifest.classes:
        raise DataError(f"{path}: {len(manifest.class_names)} names for {manifest.classes} classes: pack it again")
    return manifest


def table_at(data: str) -> FolderManifest | None:
    """Return how the table was packed that a job's data is; None if it is something else."""
    folder = Path(data).expanduser()
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    return manifest if manifest is not None and manifest.kind == "table" else None


def load_folder(folder: Path, *, is_checked: bool = False) -> TrainTest:
    """Return the dataset in a folder, mapped. Only a few blocks are read and compared with their digests at once.

    With `is_checked`, each block is compared with its digest when something of it is first gathered. Raises DataError
    with the file, and the block if one has changed.
    """
    manifest = read_manifest(folder)
    try:
        train, test = (_open_part(folder, manifest, name, is_checked=is_checked) for name in PARTS)
        return TrainTest(
            folder.resolve().name,
            replace(train, moments=(manifest.mean, manifest.std), known_largest=manifest.largest),
            test,
            class_names=tuple(manifest.class_names),
            known_digest=manifest.digest(),
        )
    except DataError as error:
        # The fault of a file begins with its path.
        raise DataError(str(error) if str(error).startswith(str(folder)) else f"{folder / MANIFEST}: {error}") from None


def _open_part(folder: Path, manifest: FolderManifest, name: PartName, *, is_checked: bool) -> Dataset:
    samples, labels = (open_array(folder, manifest, name, array, is_checked=is_checked) for array in ARRAYS)
    for file in (samples, labels):
        file.check_ends()
    return Dataset(MappedSamples(samples), labels.rows, manifest.classes, is_checked=True)


def open_array(
    folder: Path, manifest: FolderManifest, name: PartName, array: ArrayName, *, is_checked: bool = False
) -> MappedFile:
    """Map the file of an array; as `MappedFile.open`."""
    header, digests = manifest.part(name).array(array)
    return MappedFile.open(
        array_file(folder, name, array), header, manifest.block_bytes, digests, is_checked=is_checked
    )


def check_folder(folder: Path, watch: Callable[[int], None] = lambda done: None) -> FolderManifest:
    """Compare every block of a folder with its digest; DataError names the first that has changed.

    `watch` is called with the bytes of each block that was read.
    """
    manifest = read_manifest(folder)
    for name in PARTS:
        for array in ARRAYS:
            file = open_array(folder, manifest, name, array)
            size = min(manifest.block_bytes, file.rows.nbytes)
            # Not by the mapping, of which the system reads nothing ahead.
            with file.path.open("rb") as stream:
                stream.seek(DATA_OFFSET)
                for number, block in enumerate(iter(partial(stream.read, size), b"")):
                    file.check_block(number, block)
                    watch(len(block))
    return manifest
