"""From what a person gave, or a run's private folder holds, to addresses, and to what a socket demands and shows."""

import platform
import secrets
import shlex
import socket
from pathlib import Path

from lockstep.common.errors import AddressError, UnreachableError, UsageError
from lockstep.common.runtime.notice import warning
from lockstep.common.transport.address import parse
from lockstep.common.transport.auth.credentials import Credential, Lock, Token
from lockstep.common.transport.auth.keys import SERVER, KeyFolder, read_key, read_ours, write_new

#: The file with the token of a run whose processes are all of one machine, in the private folder that they share.
TOKEN = "token"

#: Printed if all peers are admitted.
WARNING = warning("--insecure: any process that reaches this address can take part in the run")


def lock_of(keys: Path | None, supervised: Path | None, *, is_insecure: bool = False) -> Lock:
    """Return whom a server admits: by a folder of keys, or by the token of its run, if there is either.

    `KeyFileError` if the keys cannot be used.
    """
    if keys is not None and is_insecure:
        raise UsageError("--keys and --insecure contradict each other: remove one")
    return _token_in(supervised) if keys is None else KeyFolder(keys).server()


def credential_of(key: Path | None, supervised: Path | None) -> Credential:
    """Return what a client shows: the key in a file, or the token of its run, if there is either."""
    return _token_in(supervised) if key is None else read_key(key).client()


def check_worker_key(path: Path) -> None:
    """Raise `UsageError` if a key file is that of the server, which may do more than compute.

    `KeyFileError` if it cannot be used.
    """
    if read_key(path).server:
        return
    folder = path.parent
    raise UsageError(
        f"{str(path)!r} is the key of the server, and stays on its machine: expected the key of a worker, "
        f"such as '{folder / 'worker-1.key'}'; `lockstep keys add {shlex.quote(str(folder))} NAME` makes one"
    )


def server_key_in(keys: Path | None) -> Path | None:
    """Return the server's own key in a folder of keys, which all servers of a run show; None without a folder."""
    return None if keys is None else keys / SERVER


def make_token(folder: Path) -> Token:
    """Make the token of a run in its private folder, or return the one that is there."""
    if not (folder / TOKEN).exists():
        write_new(folder / TOKEN, secrets.token_hex(32), 0o600)
    return Token(read_ours(folder / TOKEN, forbidden=0o077))


def _token_in(folder: Path | None) -> Token | None:
    return make_token(folder) if folder is not None and (folder / TOKEN).exists() else None


def dialled(address: str) -> str:
    """Return how another machine spells an address that stands for all of this one's."""
    for everywhere in ("//0.0.0.0:", "//[::]:"):
        address = address.replace(everywhere, f"//{platform.node() or 'HOST'}:")
    return address


def nearby(address: str) -> str:
    """Return how a process on this machine dials an address that stands for all of this machine's."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def bind_near(address: str) -> str:
    """Return where a shard of the server at `address` listens, next to it; `AddressError` if that cannot be known."""
    parsed = parse(address)
    if not parsed.is_loopback:
        raise AddressError(
            f"the server at {address!r} is on another machine, and its workers may be on others: expected the address "
            "at which they reach this shard, as --bind tcp://0.0.0.0:0 --keys DIR"
        )
    return str(parsed.free_address())


def tcp_address(host: str, port: int) -> str:
    """Return the address of a port, with IPv6 in brackets."""
    return f"tcp://{f'[{host}]' if ':' in host else host}:{port}"


#: Any port: nothing is sent to it.
PORT = 9


def address_towards(host: str) -> str:
    """Return the address of the interface that leads to `host`; `UnreachableError` if none does.

    The system is asked for the way, by a UDP socket that sends nothing. The own host name would say less: it often
    leads to loopback, or to another of several networks.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as asking:
            asking.connect(target)
            return str(asking.getsockname()[0])
    except OSError as error:
        raise UnreachableError(
            f"no interface of this machine leads to {host!r} ({error.strerror or error}): expected one network that "
            "all machines of the run are on"
        ) from None
