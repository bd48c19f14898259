"""Files of secret keys: written once, for this user only, and read only if they are still private."""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.common.errors import KeyFileError
from lockstep.common.transport.auth.credentials import Z85_KEY, ClientKeys, KeyPair

#: Valid names of keys.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

#: Most bytes of a key file.
MOST_BYTES = 4096

_BANNER = "# A secret key of Lockstep. Anybody who has it can join as {name}: keep it readable for its user only.\n"


@dataclass(frozen=True)
class SecretKey:
    """What a key file holds."""

    name: str
    pair: KeyPair
    #: The public key of the server that a worker talks to; empty in the server's own file.
    server: str = ""

    def client(self) -> ClientKeys:
        """Return what a client presents with it; with the server's own key, it talks to that server."""
        return ClientKeys(self.pair, self.server or self.pair.public)


def write_secret(path: Path, key: SecretKey) -> None:
    """Write a new file of mode 0600; KeyFileError, with nothing changed, if the file exists."""
    lines = {"name": key.name, "public": key.pair.public, "secret": key.pair.secret}
    if key.server:
        lines["server"] = key.server
    # No character of a name or of Z85 needs an escape in TOML.
    text = _BANNER.format(name=key.name) + "".join(f'{field} = "{value}"\n' for field, value in lines.items())
    write_new(path, text, 0o600)


def write_new(path: Path, text: str, mode: int) -> None:
    """Write a new file; KeyFileError, with nothing left, if that fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise KeyFileError(f"{str(path)!r} exists already: choose another name, or remove it first") from None
    except OSError as error:
        raise KeyFileError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise KeyFileError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def read_secret(path: Path) -> SecretKey:
    """Return what a file of `write_secret` holds.

    KeyFileError if it is missing, malformed, another user's, or readable or writable by others.
    """
    values = _parsed(path, read_ours(path, forbidden=0o077))
    if not {"name", "public", "secret"} <= values.keys() <= {"name", "public", "secret", "server"}:
        raise KeyFileError(_malformed(path, "it lacks name, public or secret, or has more than these and server"))
    if not NAME.fullmatch(str(values["name"])):
        raise KeyFileError(_malformed(path, f"its name is {values['name']!r}"))
    for field in values.keys() - {"name"}:
        if not (isinstance(values[field], str) and Z85_KEY.fullmatch(values[field])):
            # Without the value: it may be a secret.
            raise KeyFileError(_malformed(path, f"its {field} is not a key of 40 characters"))
    return SecretKey(values["name"], KeyPair(values["public"], values["secret"]), values.get("server", ""))


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
    return _text(path, data)


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


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise KeyFileError(_malformed(path, "it is not text")) from None


def _parsed(path: Path, text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise KeyFileError(_malformed(path, str(error))) from None


def _malformed(path: Path, what: str) -> str:
    return f"{str(path)!r} is not a key file: {what}; expected one of `lockstep keys create`, as it was written"
