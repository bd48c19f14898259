"""Files of secret keys, and a server's folder of them: its own, those that were created here, and the admitted ones.

Secrets are written once, for this user only, and read only if they are still private.

DIR            0700
├── server.key      0600  the server's secret
├── server.public         its public key, for workers that create their own
├── allowed               the admitted clients: a public key and a name per line
└── NAME.key        0600  a worker's secret and the server's public key: move it to the worker's machine
"""

import os
import re
import shutil
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lockstep.common.errors import KeyFileError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.transport.auth.credentials import SERVER_NAME, Z85_KEY, ClientKeys, KeyPair, ServerKeys
from lockstep.common.transport.auth.curve import new_pair, public_of

#: Valid names of keys.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


#: Most bytes of a key file.
MOST_BYTES = 4096

#: Limits of a key file.
_FIELDS = {"name", "public", "secret", "server"}

_BANNER = "# A secret key of Lockstep. A process that has it can join as {name}: keep it readable for its user only.\n"


@dataclass(frozen=True)
class SecretKey:
    """The content of a key file."""

    name: str
    pair: KeyPair
    #: The public key of the server that a worker talks to; empty in the server's own file.
    server: str = ""

    def client(self) -> ClientKeys:
        """Return what a client presents with it; with the server's own key, to that server."""
        return ClientKeys(self.pair, self.server or self.pair.public)


def write_secret(path: Path, key: SecretKey) -> None:
    """Write a new file of mode 0600; KeyFileError, with nothing changed, if the file exists."""
    lines = {"name": key.name, "public": key.pair.public, "secret": key.pair.secret}
    if key.server:
        lines["server"] = key.server
    # No character of a name or of Z85 needs an escape in TOML.
    text = _BANNER.format(name=key.name) + "".join(f'{name} = "{value}"\n' for name, value in lines.items())
    write_new(path, text, 0o600)


def write_new(path: Path, text: str, mode: int) -> None:
    """Write a new file; KeyFileError, with nothing left, if that fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise KeyFileError(f"{str(path)!r} exists already: choose another name, or remove it first") from None
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def read_key(path: Path) -> SecretKey:
    """Return what a file of `write_secret` holds: a worker's key, or a server's.

    KeyFileError if it is missing, malformed, another user's, or readable or writable by others.
    """
    text = read_ours(path, forbidden=0o077)
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise KeyFileError(_malformed(path, str(error))) from None
    if not {"name", "public", "secret"} <= values.keys():
        raise KeyFileError(_malformed(path, "it lacks name, public or secret"))
    if other := ", ".join(sorted(values.keys() - _FIELDS)):
        raise KeyFileError(_malformed(path, f"it has {other}, which keys of this version have not"))
    if not NAME.fullmatch(str(values["name"])):
        raise KeyFileError(_malformed(path, f"its name is {values['name']!r}"))
    for name in values.keys() - {"name"}:
        if not (isinstance(values[name], str) and Z85_KEY.fullmatch(values[name])):
            # Without the value: it may be a secret.
            raise KeyFileError(_malformed(path, f"its {name} is not a key of 40 characters"))
    if public_of(values["secret"]) != values["public"]:
        raise KeyFileError(f"the public and the secret key in {str(path)!r} do not belong together: make a new one")
    pair = KeyPair(values["public"], values["secret"])
    return SecretKey(values["name"], pair, values.get("server", ""))


def read_ours(path: Path, *, forbidden: int, most: int = MOST_BYTES) -> str:
    """Return the text of a short file of this user; KeyFileError if it is another's, or has a forbidden mode."""
    try:
        # Not blocking, since opening a FIFO of that name would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileError(
            f"{str(path)!r} cannot be read: {error.strerror}; expected a file that `lockstep keys` has made"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        _check_ours(path, os.fstat(descriptor), forbidden)
        data = file.read(most + 1)
    if len(data) > most:
        raise KeyFileError(_malformed(path, f"it is longer than {most} bytes"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise KeyFileError(_malformed(path, "it is not text")) from None


def _check_ours(path: Path, found: os.stat_result, forbidden: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError(f"{str(path)!r} is not a regular file: expected one of `lockstep keys`")
    if found.st_uid != os.geteuid():
        raise KeyFileError(
            f"{str(path)!r} belongs to user {found.st_uid}, and this process to {os.geteuid()}: chown it, or copy it"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & forbidden:
        allowed = mode & ~forbidden & 0o777
        raise KeyFileError(f"{str(path)!r} has mode {mode:04o} and is open to others: chmod {allowed:o} {str(path)!r}")


def _unwritable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(f"{str(path)!r} cannot be written: {error.strerror}")


def _malformed(path: Path, what: str) -> str:
    return f"{str(path)!r} is not a key file: {what}; expected one of `lockstep keys create`, as it was written"


#: Names of files in the folder, which no worker may have.
SERVER, SERVER_PUBLIC, ALLOWED = "server.key", "server.public", "allowed"

#: Most bytes of the list: some thousand workers.
_LIST_BYTES = 2**20


class KeyFolder(msgspec.Struct, frozen=True):
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
            write_secret(partial / SERVER, SecretKey(SERVER_NAME, pair))
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
        # A list that cannot be read is an error now, and not a server that refuses all.
        allowed()
        return ServerKeys(key.pair, allowed)

    def server_key(self) -> SecretKey:
        """Return the server's own key."""
        self._check_private()
        return read_key(self.path / SERVER)

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
            raise _unwritable(path, error) from None

    def _check_private(self) -> None:
        try:
            found = self.path.stat()
        except OSError as error:
            raise KeyFileError(
                f"the folder of keys {str(self.path)!r} cannot be read: {error.strerror}; make one with "
                f"`lockstep keys create {self.path}`"
            ) from None
        if found.st_mode & 0o022 or found.st_uid not in (os.geteuid(), 0):
            # A user that may write into it can admit workers. Reading it does no harm: each secret is checked itself.
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
        if not NAME.fullmatch(name) or name == SERVER_NAME:
            raise KeyFileError(
                f"a worker cannot be called {name!r}: expected at most 64 letters, digits, '.', '_' and '-', "
                "and not 'server'"
            )
    if len(set(names)) != len(names):
        raise KeyFileError(f"two workers have the same name in {', '.join(names)}: expected different ones")
