"""The kind of a file or a folder, by its name and its entries; reads nothing."""

import os
import stat
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line

#: Ends of the names of files.
CSV, PARQUET, ARROW = (".csv", ".tsv", ".csv.gz", ".tsv.gz"), (".parquet", ".pq"), (".arrow", ".feather")

#: Ends of the names of pictures.
PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)

#: Files that systems leave in folders.
_LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini")


def table_files(path: Path) -> list[Path]:
    """Return the files of a table: itself, or the files of one kind in a folder, by name; none if it is not a table.

    A folder of pictures in folders for their classes is not one, although lists of its pictures may be next to these.
    """
    endings = (CSV, PARQUET, ARROW)
    if path.is_dir():
        inside = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
        kinds = [[each for each in inside if each.name.lower().endswith(kind)] for kind in endings]
        found = next((found for found in kinds if found), [])
        return [] if found and has_classes(path) else found
    return [path] if path.name.lower().endswith(tuple(ending for kind in endings for ending in kind)) else []


def has_pictures(folder: Path) -> bool:
    """Tell whether there are folders with files in a folder."""
    return folder.is_dir() and any(map(has_files, folders_in(folder)))


def has_classes(folder: Path) -> bool:
    """Tell whether there are folders with pictures, by the ends of their names, in a folder."""
    return any(file.name.lower().endswith(PICTURES) for inside in folders_in(folder) for file in files_below(inside))


def has_files(folder: Path) -> bool:
    """Tell whether there is a file in a folder or in those below it; as `files_below`."""
    return any(True for _ in files_below(folder))


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, by name, without hidden ones."""
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def pictures_below(folder: Path) -> tuple[list[Path], int]:
    """Return the pictures in a folder and below it, by name, and the number of other files; as `files_below`.

    DataError for a folder without pictures.
    """
    files = list(files_below(folder))
    pictures = [each for each in files if each.suffix.lower() in ("", *PICTURES)]
    if not pictures:
        content = "has no pictures" if files else "is an empty folder"
        raise DataError(f"{folder}: {content}: expected pictures in it")
    return pictures, len(files) - len(pictures)


def files_below(folder: Path) -> Iterator[Path]:
    """Return the files in a folder and in those below it, by name, without what a system hides there.

    DataError for anything but a regular file, which may never end, and for a folder that links reach twice: a loop has
    no end either.
    """
    seen, ahead = {_identity(folder)}, [iter(_entries(folder))]
    while ahead:
        entry = next(ahead[-1], None)
        if entry is None:
            ahead.pop()
            continue
        path = Path(entry.path)
        mode = _status(path).st_mode
        if stat.S_ISDIR(mode):
            if _identity(path) in seen:
                raise DataError(f"{one_line(entry.path)}: leads to a folder that was seen before: remove the link")
            seen.add(_identity(path))
            ahead.append(iter(_entries(path)))
        elif stat.S_ISREG(mode):
            yield path
        else:
            raise DataError(f"{one_line(entry.path)}: is not a regular file, but {_kind(mode)}: remove it")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            shown = (each for each in entries if not each.name.startswith("."))
            return sorted((each for each in shown if each.name.lower() not in _LEFT_BY_SYSTEMS), key=attrgetter("name"))
    except OSError as error:
        raise _unreadable(folder, error) from None


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None


def _identity(folder: Path) -> tuple[int, int]:
    found = _status(folder)
    return found.st_dev, found.st_ino


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{one_line(str(path))}: cannot be read ({error.strerror}): repair or remove it")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
