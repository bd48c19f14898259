"""A server's folder of keys: its own, those of workers that were created here, and the list of all that it lets in.

DIR            0700
├── server.key      0600  the server's secret
├── server.public         its public key, for workers that create their own
├── allowed               who is let in: a public key and a name per line
└── NAME.key        0600  a worker's secret and the server's public key: move it to the worker's machine
"""

import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lockstep.common.errors import KeyFileError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.transport.auth.credentials import Z85_KEY, ServerKeys
from lockstep.common.transport.auth.curve import new_pair, public_of
from lockstep.common.transport.auth.key_file import NAME, SecretKey, read_ours, read_secret, write_new, write_secret

#: Names of files in the folder, which no worker may have.
SERVER, SERVER_PUBLIC, ALLOWED = "server.key", "server.public", "allowed"

#: Most bytes of the list: some thousand workers.
_LIST_BYTES = 2**20


@dataclass(frozen=True)
class KeyFolder:
    """A folder that `create` has written."""

    path: Path

    @classmethod
    def create(cls, path: Path, names: Sequence[str]) -> "KeyFolder":
        """Create the folder, a key of the server, and one for each worker; existing files stay as they are.

        KeyFileError if the folder exists and is not empty.
        """
        check_names(names)
        if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
            raise KeyFileError(
                f"{str(path)!r} exists already: choose another, or add a worker with `lockstep keys add {path} NAME`"
            )
        # In a temporary folder, then renamed: a folder with half of its keys would be mistaken for a complete one.
        target = path.absolute()
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            partial.mkdir(mode=0o700, parents=True)
            pair = new_pair()
            write_secret(partial / SERVER, SecretKey("server", pair))
            write_new(partial / SERVER_PUBLIC, f"{pair.public}\n", 0o644)
            write_new(partial / ALLOWED, "", 0o600)
            folder = cls(partial)
            for name in names:
                folder.add(name)
            partial.rename(target)
        except OSError as error:
            raise KeyFileError(f"{str(path)!r} cannot be created: {error.strerror}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(path)

    def server(self) -> ServerKeys:
        """Return what the server presents, and whom it lets in by the current list."""
        key, allowed = self.server_key(), AllowList(self.path / ALLOWED)
        # A list that cannot be read is an error now, and not a server that lets nobody in.
        allowed()
        return ServerKeys(key.pair, allowed)

    def server_key(self) -> SecretKey:
        """Return the server's own key."""
        self._check_private()
        return checked(read_secret(self.path / SERVER), self.path / SERVER)

    def names(self) -> Mapping[str, str]:
        """Return the names of all that are let in, by public key."""
        self._check_private()
        return AllowList(self.path / ALLOWED)()

    def add(self, name: str) -> Path:
        """Create the key of another worker, and let it in; return the worker's file."""
        check_names([name])
        self._check_new(name)
        path = self.path / f"{name}.key"
        pair = new_pair()
        write_secret(path, SecretKey(name, pair, self.server_key().pair.public))
        try:
            self.allow(name, pair.public)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def allow(self, name: str, public: str) -> None:
        """Let in the owner of a key that was created elsewhere."""
        check_names([name])
        if not Z85_KEY.fullmatch(public):
            raise KeyFileError(
                f"{public!r} is not a public key: expected 40 characters, as `lockstep keys make` prints"
            )
        self._check_new(name)
        names = self.names()
        if public in names:
            raise KeyFileError(f"the key {public!r} is already admitted, as {names[public]!r}: nothing to do")
        self._write({**names, public: name})

    def revoke(self, name: str) -> None:
        """No longer let a worker in."""
        names = self.names()
        if name not in names.values():
            known = f"expected one of {', '.join(names.values())}" if names else "the list is empty"
            raise KeyFileError(f"no worker {name!r} is admitted: {known}")
        self._write({public: other for public, other in names.items() if other != name})

    def _check_new(self, name: str) -> None:
        if name in self.names().values():
            raise KeyFileError(f"a worker {name!r} is already admitted: choose another name, or revoke that one first")

    def _write(self, names: Mapping[str, str]) -> None:
        path = self.path / ALLOWED
        try:
            write_atomically(path, [f"{public} {name}\n".encode() for public, name in names.items()])
            path.chmod(0o600)
        except OSError as error:
            raise KeyFileError(f"{str(path)!r} cannot be written: {error.strerror}") from None

    def _check_private(self) -> None:
        try:
            found = self.path.stat()
        except OSError as error:
            raise KeyFileError(
                f"the folder of keys {str(self.path)!r} cannot be read: {error.strerror}; make one with "
                f"`lockstep keys create {self.path}`"
            ) from None
        if found.st_mode & 0o022 or found.st_uid not in (os.geteuid(), 0):
            # Whoever may write into it decides who is let in. Reading it does no harm: each secret is checked itself.
            raise KeyFileError(
                f"the folder of keys {str(self.path)!r} has mode {stat.S_IMODE(found.st_mode):04o} and belongs to user "
                f"{found.st_uid}: expected it to be writable by its user only: chmod 700 {str(self.path)!r}"
            )


class AllowList:
    """The list of a server's folder, read again whenever the file has changed: called, it returns names by key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[int, int, int] | None = None
        self._names: Mapping[str, str] = {}

    def __call__(self) -> Mapping[str, str]:
        """Return names by public key; KeyFileError if the list is missing, malformed, or writable by others."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise KeyFileError(f"the list {str(self._path)!r} cannot be read: {error.strerror}") from None
        state = found.st_mtime_ns, found.st_size, found.st_ino
        if state != self._state:
            text = read_ours(self._path, forbidden=0o022, most=_LIST_BYTES)
            self._names = dict(_entry(self._path, line) for line in text.splitlines() if line and line[0] != "#")
            self._state = state
        return self._names


def _entry(path: Path, line: str) -> tuple[str, str]:
    public, _, name = line.partition(" ")
    if not (Z85_KEY.fullmatch(public) and NAME.fullmatch(name)):
        raise KeyFileError(f"the list {str(path)!r} has the line {line!r}: expected a public key, a space, and a name")
    return public, name


def check_names(names: Sequence[str]) -> None:
    """Raise KeyFileError if a name is not valid for a worker."""
    for name in names:
        if not NAME.fullmatch(name) or name == "server":
            raise KeyFileError(
                f"a worker cannot be called {name!r}: expected at most 64 letters, digits, '.', '_' and '-', "
                "and not 'server'"
            )
    if len(set(names)) != len(names):
        raise KeyFileError(f"two workers have the same name in {', '.join(names)}: expected different ones")


def checked(key: SecretKey, path: Path) -> SecretKey:
    """Return a key whose halves belong together; KeyFileError if they do not."""
    if public_of(key.pair.secret) != key.pair.public:
        raise KeyFileError(f"the public and the secret key in {str(path)!r} do not belong together: make a new one")
    return key


def read_key(path: Path) -> SecretKey:
    """Return the key in a worker's file, or a server's; KeyFileError if it cannot be used."""
    return checked(read_secret(path), path)
