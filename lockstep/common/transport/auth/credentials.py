"""Credentials of a socket, as values: CURVE keys, or a token among the processes of one run. Opens nothing."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

#: The domain of our sockets. ZeroMQ asks no authenticator about a socket without one.
DOMAIN = b"lockstep"

#: The name of the server's own key, which no worker's has.
SERVER_NAME = "server"

#: 32 bytes of a CURVE key in Z85, the spelling of ZeroMQ's RFC 32.
Z85_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key, both halves in Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class ClientKeys:
    """The credentials of a client, and the public key of the only server that it talks to."""

    pair: KeyPair
    server: str


class ServerKeys(msgspec.Struct, frozen=True):
    """The credentials of a server, and of the clients that it lets in."""

    pair: KeyPair
    #: Returns the current names by public key. A `LockstepError` lets no client in.
    allowed: Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class Token:
    """A secret that both ends know. It is sent in clear text: only for sockets that never leave this machine."""

    text: str = field(repr=False)


#: The credentials of a client; None if the server asks for nothing.
Credential = ClientKeys | Token | None

#: The credentials that a server demands; None if every client that can reach it is let in.
Lock = ServerKeys | Token | None
