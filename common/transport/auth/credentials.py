"""Who may speak over a socket, as values: CURVE keys, or a token among the processes of one run. Opens nothing."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: 32 bytes of a CURVE key in Z85, the spelling of ZeroMQ's RFC 32.
Z85_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key, both halves in Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class ClientKeys:
    """What a client shows, and the public key of the only server that it speaks with."""

    pair: KeyPair
    server: str


@dataclass(frozen=True)
class ServerKeys:
    """What a server shows, and whom it lets in."""

    pair: KeyPair
    #: Returns names by public key, as they are now. A `LockstepError` lets nobody in.
    allowed: Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class Token:
    """A secret that both ends know. It is sent as it is: only for sockets that never leave this machine."""

    text: str = field(repr=False)


#: What a client shows; None where the server asks for nothing.
Credential = ClientKeys | Token | None

#: What a server demands; None where everybody who can reach it may speak.
Lock = ServerKeys | Token | None
