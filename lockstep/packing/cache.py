"""Sources where a dataset is expected: packed once, into a folder that is named by the digest of their bytes."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from lockstep.common.data.array_source import is_array_source, open_arrays, unknown_folder
from lockstep.common.data.folder import FORMAT, MANIFEST, Origin, read_manifest
from lockstep.common.data.folder_writer import write_manifest
from lockstep.common.data.mapped import MAX_FILE_BYTES
from lockstep.common.errors import DataError
from lockstep.common.files.reading import near_file, open_regular
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.environment import own_cache
from lockstep.common.runtime.version import VERSION
from lockstep.packing.files import files_below, has_pictures, table_files
from lockstep.packing.options import PackOptions, Spelling, Watch
from lockstep.packing.pack import pack
from lockstep.ps.records.run_folder import RECEIPT, read_receipt
from lockstep.runs.run_dir import finished, resumed_job
from lockstep.runs.trained_model import demand_data

#: Formats that are packed on the way to a run.
PACKED = "a .csv, a .parquet, a folder of pictures, or arrays without a test set"


def is_to_be_packed(source: str) -> bool:
    """Tell whether a job's data is a table, pictures, or arrays without a test set, that is not packed yet."""
    path = Path(os.path.expanduser(source))
    if not path.exists() or (path / MANIFEST).is_file():
        return False
    if is_array_source(str(path)):
        return _has_no_test_set(path)
    return bool(table_files(path)) or has_pictures(path)


def _has_no_test_set(path: Path) -> bool:
    try:
        with open_arrays(str(path)) as arrays:
            return arrays.test is None
    except DataError:
        return False  # it has no form that can be packed: loading it reports why


@dataclass(frozen=True, kw_only=True)
class DatasetCache:
    """The packed datasets of this user, and how packing another one is shown."""

    folder: Path = field(default_factory=lambda: Path(own_cache(), "datasets"))
    #: Shows how far packing is, for as long as the context lasts.
    progress: Callable[[str], AbstractContextManager[Watch]] = lambda what: nullcontext(lambda share: None)
    #: Shows a line about a dataset that was packed.
    say: Callable[[str], object] = lambda text: None

    def packed(self, source: str, options: PackOptions, loss: str | None) -> str:
        """Return a job's data: as it is, or the folder that it was packed into, now or before.

        `loss` is the job's if that is given, which decides what a target is if the options do not. Raises DataError as
        `pack`, or if options are given that the data has no use for.
        """
        path = Path(os.path.expanduser(source))
        if not is_to_be_packed(source):
            _check_unpacked(source, path, options)
            return source
        options = options if loss is None else options.for_loss(loss)
        stem = re.sub(r"[^\w-]+", "-", path.resolve().stem)[:40] or "data"
        folder = self.folder / f"{stem}{_name_of(path, options)}"
        if not (folder / MANIFEST).is_file():
            self._pack(folder, path, options, source)
        else:
            _record_origin(folder, options.origin(str(path)))
        if loss is not None:
            _check_target(source, folder, loss, options.spelled)
        return str(folder)

    def training_data(self, run: Path, place: str | None) -> str | None:
        """Return where the training data of a run can be loaded from, None if no place was given.

        A table, pictures or arrays without a test set are packed, with the options that the run's receipt has.
        DataError if it has none, or as of `packed`.
        """
        if place is None or not is_to_be_packed(place):
            return place
        kept = read_receipt(run).data
        return self.packed(place, PackOptions() if kept is None else PackOptions.recorded(kept.origin), None)

    def resumed(self, run: Path, given: Mapping[str, Any]) -> tuple[Job, RunOptions]:
        """Return the job and the options of a run that is resumed, as `resumed_job`, with its data where that is now.

        `DataError` as of `training_data`, `pack_again` and `demand_data`.
        """
        if "data" in given and (run / RECEIPT).is_file():
            given = {**given, "data": self.training_data(run, str(given["data"]))}
        job, options = resumed_job(run, given)
        if finished(run) is None:
            self.pack_again(run, job.data)
            demand_data(run, job, "--data")
        return job, options

    def pack_again(self, run: Path, data: str) -> None:
        """Pack the data of a run that is resumed again, if it was in the cache and is there no more.

        DataError with the command that packs it, if its source is not here as it was; nothing is done for other data.
        """
        folder = Path(data)
        kept = read_receipt(run).data if not folder.exists() and (run / RECEIPT).is_file() else None
        if kept is None or not kept.origin.version or not kept.origin.source:
            return
        source, options = Path(kept.origin.source), PackOptions.recorded(kept.origin)
        if not source.exists() or folder.parent != self.folder or not folder.name.endswith(_name_of(source, options)):
            why = "" if not source.exists() else " with the file as it was then,"
            raise DataError(
                f"the run in {str(run)!r} needs its training data, which is not here: make it again{why} with "
                f"`{kept.origin.pack_command(data)}`, or resume the run with --data DATA, its source or a packed copy"
            )
        self._pack(folder, source, options, str(source))

    def has_changed(self, folder: Path, origin: Origin) -> bool:
        """Tell whether a source is there, and is not any more what a folder of the cache was packed from.

        False if that is not known: another version of Lockstep packed it, or it is not in the cache.
        """
        source = Path(origin.source)
        if folder.parent != self.folder or origin.version != VERSION or not source.exists():
            return False
        return not folder.name.endswith(_name_of(source, PackOptions.recorded(origin)))

    def _pack(self, folder: Path, source: Path, options: PackOptions, named: str) -> None:
        with self.progress(f"packing {named}") as watch:
            packed = pack(str(source), folder, options, watch)
        for line in packed.lines():
            self.say(line)


def _check_unpacked(source: str, path: Path, options: PackOptions) -> None:
    """Raise DataError for data that is taken as it is, if it is missing or there are options of packing."""
    if source != "mnist" and not path.exists() and (table_files(path) or options != PackOptions()):
        raise DataError(f"{source}: does not exist{near_file(path)}: expected {PACKED}")
    if options != PackOptions():
        if path.is_dir() and not (path / MANIFEST).is_file() and not is_array_source(str(path)):
            raise unknown_folder(path)
        given = ", ".join(map(options.spelled, options.changed()))
        raise DataError(f"{given} with data {source!r}: expected {PACKED}")


def _record_origin(folder: Path, origin: Origin) -> None:
    """Let a dataset that was packed before name the source that was given now: the same bytes may lie elsewhere."""
    manifest = read_manifest(folder)
    if manifest.origin != origin:
        with suppress(OSError):  # a cache that is read only
            write_manifest(folder, msgspec.structs.replace(manifest, origin=origin))


def _check_target(source: str, folder: Path, loss: str, spelled: Spelling) -> None:
    """Raise DataError if a table's target became numbers, and the loss needs classes."""
    manifest = read_manifest(folder)
    if kind_of(loss) is LossKind.CLASSES and not manifest.classes and manifest.targets:
        named = ", ".join(repr(one_line(target.name, 60)) for target in manifest.targets[:3])
        advice = f"or {spelled('task', 'classes')}" if len(manifest.targets) == 1 else f"or one {spelled('target')}"
        raise DataError(
            f"{source}: the target {named} is numeric, and loss = {loss!r} needs classes: expected "
            f"{spelled('loss', 'mse')}, {advice}"
        )


def _name_of(path: Path, options: PackOptions) -> str:
    """Return the end of the name of the folder that a source is packed into."""
    return f"-{digest_of(path, options)[:16]}"


def digest_of(path: Path, options: PackOptions) -> str:
    """Return the SHA-256 of what a source's folder follows from: its files' bytes, and the options."""
    digest = hashlib.sha256(msgspec.json.encode([VERSION, FORMAT, replace(options, test=None).texts()], order="sorted"))
    sources = [path] if options.test is None else [path, options.test]
    try:
        for source in sources:
            for file in files_below(source) if source.is_dir() else [source]:
                name = str(file.relative_to(source)) if file != source else ""
                with open_regular(file, MAX_FILE_BYTES) as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                digest.update(f"{name!r} {content};".encode())
    except OSError as error:
        reason = one_line(error.strerror or str(error))
        raise DataError(f"{one_line(str(error.filename))}: cannot be read ({reason}): expected a file") from None
    return digest.hexdigest()
