"""What a file or a folder is, by its name and what is in it; reads nothing."""

import os
from pathlib import Path

#: What the names of files end in.
CSV, PARQUET, ARROW = (".csv", ".tsv", ".csv.gz", ".tsv.gz"), (".parquet", ".pq"), (".arrow", ".feather")

#: Files that systems leave in folders.
_LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini")


def table_files(path: Path) -> list[Path]:
    """Return the files of a table: itself, or the files of one kind in a folder, by name; none if it is no table."""
    endings = (CSV, PARQUET, ARROW)
    if path.is_dir():
        inside = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
        kinds = [[each for each in inside if each.name.lower().endswith(kind)] for kind in endings]
        return next((found for found in kinds if found), [])
    return [path] if path.name.lower().endswith(tuple(ending for kind in endings for ending in kind)) else []


def has_pictures(folder: Path) -> bool:
    """Tell whether there are folders with files in a folder."""
    return folder.is_dir() and any(map(files_below, folders_in(folder)))


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, by name, without hidden ones."""
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and in those below it, by name, without what a system hides there."""
    found: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in _LEFT_BY_SYSTEMS:
                continue
            found += files_below(Path(entry.path)) if entry.is_dir() else [Path(entry.path)]
    return found
