"""A run in one file: `lockstep export` writes it, and commands read it as they read the folder of a run.

It is a zip of the folder's records, with names in place of paths and of machines, and without logs and checkpoints. A
file may come from anywhere, so each entry has to be a record of a run, and no larger than such a file can have made it.
The cache keeps the unpacked files, under the digest of the file.
"""

import hashlib
import os
import re
import shlex
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec.structs import replace

from lockstep.common.errors import FileFormatError, UsageError
from lockstep.common.files.reading import decode, open_regular, read_regular
from lockstep.common.files.safetensors import parts_of, read
from lockstep.common.files.sanitize import one_line
from lockstep.common.model.initial import INITIAL
from lockstep.common.runtime.environment import own_cache
from lockstep.ps.records.ledger import WorkerIn
from lockstep.ps.records.metrics import METRICS, MOST_LINES_BYTES, FailureRecord, read_metrics
from lockstep.ps.records.receipt import SubjectFile, statement_of
from lockstep.ps.records.run_folder import (
    AVERAGE_WEIGHTS,
    JOB,
    LEDGER,
    MODEL,
    RECEIPT,
    RESULT,
    WEIGHTS,
    json_text,
    read_ledger,
    read_receipt,
    read_result,
)
from lockstep.runs.job_file import to_toml
from lockstep.runs.run_dir import (
    EXAMPLES,
    finished,
    has_begun,
    recorded,
)
from lockstep.runs.trained_model import description_of

#: The entries, next to the files of the model.
NAMES = (JOB, RECEIPT, RESULT, LEDGER, METRICS, WEIGHTS, AVERAGE_WEIGHTS, INITIAL, EXAMPLES)

#: Most entries, and bytes of the file.
MOST_ENTRIES, MOST_BYTES = 10_000, 2**40

#: The unpacked files may be so many times as large: packing makes lines of records a tenth, and zeros a thousandth.
MOST_TIMES = 100

#: The time of all entries, the earliest that a zip can have: the same run gives the same file.
TIME = (1980, 1, 1, 0, 0, 0)

#: Bytes that are copied at once.
PIECE_BYTES = 2**20

#: The bit of an entry's flags that says that it is encrypted.
ENCRYPTED = 1

#: The kind of the lines of failures.
FAILURE = FailureRecord.__struct_config__.tag

_EXPECTED = "a file that `lockstep export` has written"

#: The errors of unpacking damaged bytes.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, StopIteration)


def share(folder: Path, file: Path) -> None:
    """Write a finished run to a file, whole or not at all.

    UsageError if the run has not finished, or the file cannot be written.
    """
    if finished(folder) is None or not (folder / WEIGHTS).is_file():
        if has_begun(folder):
            again = f"lockstep train --resume {shlex.quote(str(folder))}"
            raise UsageError(f"the run in {str(folder)!r} is not finished: resume it with `{again}`, and share it then")
        raise UsageError(f"{str(folder)!r} holds no finished run: expected a folder with {RESULT} and {WEIGHTS}")
    coming = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(coming, "x") as archive:
            subjects = list[SubjectFile]()
            for name, parts in _entries(folder):
                digest = _add(archive, f"{_name_of(folder)}/{name}", parts)
                subjects.append(SubjectFile(name, {"sha256": digest}))
            _add(archive, f"{_name_of(folder)}/{RECEIPT}", [_receipt(folder, subjects)])
        os.replace(coming, file)
    except OSError as error:
        raise UsageError(
            f"cannot write {str(file)!r}: {error.strerror}: expected a file in a folder that exists"
        ) from None
    finally:
        coming.unlink(missing_ok=True)


def _name_of(folder: Path) -> str:
    return re.sub(r"[^\w.-]+", "-", read_receipt(folder).run).strip(".-")[:100] or "run"


def _add(archive: zipfile.ZipFile, name: str, parts: Iterable[bytes | memoryview]) -> str:
    """Add a file; return its SHA-256 in hex."""
    digest = hashlib.sha256()
    entry = zipfile.ZipInfo(name, TIME)
    # Weights do not get smaller.
    entry.compress_type = zipfile.ZIP_STORED if name.endswith((".safetensors", ".npz")) else zipfile.ZIP_DEFLATED
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    with archive.open(entry, "w", force_zip64=True) as out:
        for part in parts:
            digest.update(part)
            out.write(part)
    return digest.hexdigest()


def _entries(folder: Path) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    """Yield the files of a run by name but for its receipt, without what only says where it was made."""
    job, options = recorded(folder)
    receipt, result = read_receipt(folder), read_result(folder)
    shared = job.without_folders()
    yield JOB, [to_toml(shared, options).encode()]
    yield RESULT, [json_text(replace(result, dataset=shared.data, model=shared.model_name()))]
    yield LEDGER, _ledger(folder)
    yield METRICS, _figures(folder)
    for name in (WEIGHTS, AVERAGE_WEIGHTS):
        if (folder / name).is_file():
            arrays, metadata = read(folder / name)
            yield name, parts_of(arrays, {**metadata, "model": shared.model_name()})
    files = [f"{MODEL}/{file.place}" for file in receipt.model_files]
    for name in (INITIAL, EXAMPLES, *files):
        if (folder / name).is_file():
            yield name, _pieces(folder / name)


def _pieces(path: Path) -> Iterator[bytes]:
    with open_regular(path, MOST_BYTES) as file:
        yield from iter(lambda: file.read(PIECE_BYTES), b"")


def _receipt(folder: Path, subjects: list[SubjectFile]) -> bytes:
    """Return the receipt of the shared files; in the data's description, sources have names in place of paths."""
    data = description_of(folder, recorded(folder)[0])
    paths = {name: os.path.basename(path) for name in ("test", "labels") if (path := data.origin.options.get(name))}
    source = os.path.basename(data.origin.source)
    origin = replace(data.origin, source=source, options={**data.origin.options, **paths})
    receipt = replace(read_receipt(folder), data=replace(data, origin=origin))
    return json_text(statement_of(subjects, receipt))


def _figures(folder: Path) -> Iterator[bytes]:
    """Yield the figures of steps and epochs: why a run failed before it was resumed may name paths."""
    read_metrics(folder)  # raises if one is damaged
    for line in read_regular(folder / METRICS, MOST_LINES_BYTES).split(b"\n")[:-1]:
        if decode(line, dict[str, Any]).get("kind") != FAILURE:
            yield line + b"\n"


def _ledger(folder: Path) -> Iterator[bytes]:
    """Yield the ledger, in which machines have numbers in place of their names."""
    lines = read_ledger(folder)
    hosts = dict.fromkeys(line.host for line in lines if isinstance(line, WorkerIn))
    numbered = {host: f"host-{number}" for number, host in enumerate(hosts, 1)}
    pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(host)}(?![\w.-])" for host in sorted(hosts, key=len)[::-1]))
    for line in lines:
        texts = {name: value for name in line.__struct_fields__ if isinstance(value := getattr(line, name), str)}
        if hosts:
            line = replace(
                line, **{name: pattern.sub(lambda at: numbered[at[0]], text) for name, text in texts.items()}
            )
        yield msgspec.json.encode(line) + b"\n"


def opened_run(path: Path) -> Path:
    """Return the folder of a run, which is `path`, or where the file of `lockstep export` there is unpacked.

    FileFormatError if it is a zip, and not one of `lockstep export`.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return path
    try:
        with open_regular(path, MOST_BYTES) as file:
            folder = unpacked_runs() / hashlib.file_digest(file, "sha256").hexdigest()[:32]
            if not folder.exists():
                _unpack(path, file, folder)
        return next(each for each in folder.iterdir())
    except _DAMAGED as error:
        raise FileFormatError(f"{str(path)!r} is damaged ({one_line(str(error))}): expected {_EXPECTED}") from None
    except OSError as error:
        where = str(error.filename or path)
        raise UsageError(
            f"cannot unpack {str(path)!r}: {where!r}: {error.strerror}: expected room in the cache"
        ) from None


def unpacked_runs() -> Path:
    """Return the folder of the runs that were unpacked on this machine."""
    return Path(own_cache()) / "runs"


def _unpack(path: Path, file: BinaryIO, folder: Path) -> None:
    """Unpack a file into a new folder, whole or not at all."""
    with zipfile.ZipFile(file) as archive:
        entries = _checked(path, archive.infolist(), os.fstat(file.fileno()).st_size)
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        coming = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            for entry in entries:
                place = coming / entry.filename
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as parts, place.open("xb") as out:
                    shutil.copyfileobj(parts, out, PIECE_BYTES)
            with suppress(FileExistsError):  # another process has unpacked the same file
                os.rename(coming, folder)
        finally:
            shutil.rmtree(coming, ignore_errors=True)


def _checked(path: Path, entries: Sequence[zipfile.ZipInfo], size: int) -> list[zipfile.ZipInfo]:
    """Return the entries that are files; FileFormatError names the first that is not a record of one run."""
    files = [entry for entry in entries if not entry.is_dir()]
    fault = next(filter(None, map(_fault, files)), "") or _fault_of_all(files, size)
    if fault:
        raise FileFormatError(f"{str(path)!r}: {fault}: expected {_EXPECTED}")
    return files


def _fault_of_all(files: Sequence[zipfile.ZipInfo], size: int) -> str:
    """Return why files that are records of runs are not those of one run, empty if they are."""
    names = {entry.filename for entry in files}
    folders = sorted({name.partition("/")[0] for name in names})
    unpacked = sum(entry.file_size for entry in files)
    if not files:
        return "it is empty"
    if len(folders) > 1:
        return f"it has the folders {', '.join(repr(one_line(folder, 40)) for folder in folders[:4])}, and not one"
    if len(names) < len(files) or len(files) > MOST_ENTRIES:
        return f"it has {len(files):,} entries, of which {len(names):,} have different names"
    if unpacked > MOST_TIMES * size:
        return f"its {size:,} bytes become {unpacked:,} when they are unpacked, more than {MOST_TIMES} times as many"
    return ""


def _fault(entry: zipfile.ZipInfo) -> str:
    """Return why an entry is not a record of a run, empty if it is one."""
    named = f"the entry {one_line(entry.filename, 80)!r}"
    # The mode of an entry that another system than Unix has made is 0.
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return f"{named} is not a regular file, but {'a link' if kind == stat.S_IFLNK else 'of another kind'}"
    top, *parts = entry.filename.split("/")
    is_plain = all(part not in ("", ".", "..") and part.isprintable() and "\\" not in part for part in (top, *parts))
    if not is_plain or not ("/".join(parts) in NAMES or (len(parts) > 1 and parts[0] == MODEL)):
        return f"{named} is not a record of a run"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & ENCRYPTED:
        return f"{named} is encrypted, or packed in a way that runs are not"
    return ""
