"""The files of Python source of a model: the one that a job names, and those that it imports from its own folder.

They are found by reading alone, as the import statements say, so that a digest is known before anything runs. A module
that is imported in another way, or from elsewhere, is not among them: installed packages are not the model's.
"""

import ast
import hashlib
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec
from msgspec import Meta

from lockstep.common.errors import ModelError
from lockstep.common.files.reading import read_regular

#: Bytes of a model's files, and their number. A model that has more has found something else, as a home folder.
MOST_BYTES, MOST_FILES = 2**24, 256

#: The file of a package in its folder.
PACKAGE = "__init__.py"

#: Folders of installed packages: of these, only the package that a job names is the model's.
INSTALLED = ("site-packages", "dist-packages")

#: A place below a folder, and never above it: receipts and welcomes name such.
Place = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^(?!/)(?!([\s\S]*/)?\.\.(/|\Z))[^\0]*\Z")]


class ModelFile(msgspec.Struct, frozen=True):
    """A file that belongs to a model."""

    #: Its place below the folder that the model imports from.
    place: Place
    #: The digest of the file, in hex.
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


def digest_of(files: Sequence[ModelFile]) -> str:
    """Return the digest of a model of these files, in hex.

    Of one file it is that file's. Of several it is the SHA-256 of what `sha256sum` prints of them, sorted by place.
    """
    if len(files) == 1:
        return files[0].sha256
    lines = (f"{file.sha256}  {file.place}\n" for file in sorted(files, key=lambda file: file.place))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_shared(top: str) -> bool:
    """Return whether every model finds the same module of that name, of Python's library or ours, and no own one."""
    return top == "lockstep" or top in sys.stdlib_module_names


def digests_of(texts: Mapping[str, bytes]) -> list[ModelFile]:
    """Return files, given by their places, with their digests."""
    return [ModelFile(place, hashlib.sha256(text).hexdigest()) for place, text in texts.items()]


def differing(here: Sequence[ModelFile], there: Sequence[ModelFile]) -> str:
    """Return which files are not the same in two models, with both digests; empty if all are."""
    ours, theirs = ({file.place: file.sha256 for file in files} for files in (here, there))
    odd = [place for place in {**theirs, **ours} if ours.get(place) != theirs.get(place)]
    return "; ".join(f"{place!r}: SHA-256 {_short(ours, place)} here, {_short(theirs, place)} there" for place in odd)


def _short(digests: dict[str, str], place: str) -> str:
    return f"{digests[place][:12]}…" if place in digests else "none"


class ModelFiles(msgspec.Struct, frozen=True):
    """The files of a model, as they were when they were read, and the function that builds it."""

    #: Below which all of them are, and from which they import.
    root: Path
    function: str
    #: By place. The first is the one with the function.
    texts: dict[str, bytes]

    @property
    def main(self) -> str:
        """The place of the file with the function."""
        return next(iter(self.texts))

    @property
    def path(self) -> Path:
        """The place of that file."""
        return self.root / self.main

    def digests(self) -> list[ModelFile]:
        """Return the files with their digests, the one with the function first."""
        return digests_of(self.texts)

    @property
    def digest(self) -> str:
        """The digest of all of them."""
        return digest_of(self.digests())

    def __str__(self) -> str:
        return f"{self.path}:{self.function}"


def read_model_files(name: str) -> ModelFiles:
    """Read the files of `path/to/file.py:function` or `package.module:function`.

    `ModelError` if the name is malformed, or a file is missing or cannot be read.
    """
    path, _, function = name.rpartition(":")
    if not path or not function.isidentifier():
        raise ModelError(
            f"model {name!r} names no function in a file: expected path/to/file.py:function or package.module:function"
        )
    root, main = _file(path) if _is_path(path) else _module(path)
    search = _Search(root, main)
    search.read_all(is_module=not _is_path(path))
    return ModelFiles(root, function, search.texts)


def read_copy(root: Path, function: str, files: Sequence[ModelFile]) -> ModelFiles:
    """Read a copy of a model's files below a folder; `ModelError` if one is missing, or not the one that is listed."""
    found = ModelFiles(root, function, {file.place: _read(root / file.place) for file in files})
    if odd := differing(found.digests(), files):
        raise ModelError(f"the copy of the model in {str(root)!r} was changed: {odd}")
    return found


def _is_path(path: str) -> bool:
    # `Path.is_file` raises for a name that is too long.
    is_module = not path.endswith(".py") and all(part.isidentifier() for part in path.split("."))
    return not is_module or os.path.isfile(path)


def _file(name: str) -> tuple[Path, str]:
    """Return the folder that a file imports from, and the file's place in it: a package is imported from above it."""
    file = Path(name)
    if not os.path.isfile(file.parent / PACKAGE):
        return file.parent, file.name
    file = Path(os.path.abspath(file))
    root = next(folder for folder in file.parents if not os.path.isfile(folder / PACKAGE))
    return root, file.relative_to(root).as_posix()


def _module(name: str) -> tuple[Path, str]:
    """Return the same of a module: of one in the current folder, or else of an installed one. Imports nothing."""
    parts = name.split(".")
    for root in (Path(), *map(Path, sys.path)):
        for place in ("/".join([*parts, PACKAGE]), f"{'/'.join(parts)}.py"):
            if os.path.isfile(root / place):
                return root, place
    raise ModelError(
        f"no module {name!r} in this folder or among the installed packages: expected package.module:function, or "
        "path/to/file.py:function"
    )


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        hint = f" (did you mean {path.name + '.py'!r}?)" if os.path.isfile(f"{path}.py") else ""
        raise ModelError(
            f"model file {str(path)!r} cannot be read: {reason}{hint}; expected a file of Python"
        ) from error


@dataclass
class _Search:
    """Follows the import statements from one file on, below one folder."""

    root: Path
    main: str
    texts: dict[str, bytes] = field(default_factory=dict)

    def read_all(self, *, is_module: bool) -> None:
        """Read the main file, and all that belongs to it.

        The packages of the main file belong to it if it is imported as their module: if it is named as one, or imports
        anything of its own. Otherwise it is a file by itself, wherever it is.
        """
        self._follow([self.main])
        if is_module or len(self.texts) > 1:
            self._follow(self._packages(PurePosixPath(self.main).parts[:-1]))

    def _follow(self, places: list[str]) -> None:
        waiting = deque(places)
        while waiting:
            place = waiting.popleft()
            if place in self.texts:
                continue
            self.texts[place] = _read(self.root / place)
            if len(self.texts) > MOST_FILES or sum(map(len, self.texts.values())) > MOST_BYTES:
                raise ModelError(
                    f"model file {str(self.root / self.main)!r} imports more than {MOST_FILES} files or {MOST_BYTES} "
                    f"bytes from {str(self.root)!r}: expected a model with fewer in its own folder"
                )
            waiting.extend(self._imported(place))

    def _imported(self, place: str) -> Iterator[str]:
        """Yield the places of what a file imports from the root."""
        package = PurePosixPath(place).parts[:-1]
        for level, name in _imports(self.texts[place]):
            if level:
                around = package[: len(package) + 1 - level]
                yield from [*self._packages(around), *self._modules(around, name)] if level <= len(package) + 1 else []
            elif self._may_be_own(name[0]):
                # A module of a package imports files next to the package, and a script those next to it.
                yield from self._modules((), name) or self._modules(PurePosixPath(self.main).parts[:-1], name)

    def _may_be_own(self, top: str) -> bool:
        if is_shared(top):
            return False
        return self.root.name not in INSTALLED or top == PurePosixPath(self.main).parts[0].removesuffix(".py")

    def _modules(self, around: tuple[str, ...], name: tuple[str, ...]) -> list[str]:
        """Return the files that importing a module below a package runs, empty if it is not there."""
        path = "/".join([*around, *name])
        modules = (place for place in (f"{path}/{PACKAGE}", f"{path}.py") if os.path.isfile(self.root / place))
        found = [*self._packages(name[:-1], around), *islice(modules, 1)]
        return [*self._packages(around), *found] if found else []

    def _packages(self, name: tuple[str, ...], around: tuple[str, ...] = ()) -> list[str]:
        """Return the files of a package below another, and of those between them."""
        places = ("/".join([*around, *name[:count], PACKAGE]) for count in range(1, len(name) + 1))
        return [place for place in places if os.path.isfile(self.root / place)]


def _imports(text: bytes) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the level and the name of each module that a source may import, wherever in it that is written."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # it is reported when the file is run
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, tuple(alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if module:
                yield node.level, module
            # A name imported from a package may be a module of it.
            yield from ((node.level, (*module, alias.name)) for alias in node.names)
