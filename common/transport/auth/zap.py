"""Whether a connection is let in: what ZeroMQ asks an authenticator (RFC 27) and how that is answered. Pure."""

import hmac
from dataclasses import dataclass

from common.errors import LockstepError
from common.transport.auth.credentials import ServerKeys, Token

#: What our sockets call themselves. ZeroMQ asks nobody about a socket without a name.
DOMAIN = b"lockstep"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One connection that wants in."""

    domain: bytes
    #: The host, without a port; empty for a local socket.
    address: str
    mechanism: str
    #: CURVE: the public key in Z85. PLAIN: a user's name and the password.
    credentials: tuple[str, ...]


@dataclass(frozen=True)
class AuthReply:
    """Let in under a name, or not, with the reason."""

    name: str = ""
    reason: str = ""

    @property
    def is_admitted(self) -> bool:
        """Tell whether the connection is let in."""
        return not self.reason


def judge(request: Request, lock: ServerKeys | Token) -> AuthReply:
    """Return whether a connection is let in. Whatever is not known to be right is wrong."""
    if request.domain != DOMAIN:
        return AuthReply(reason=f"the domain {request.domain!r} is not ours")
    match lock, request.mechanism, request.credentials:
        case ServerKeys(), "CURVE", (public,):
            return _judge_key(public, lock)
        case Token(), "PLAIN", (_, password) if hmac.compare_digest(password.encode(), lock.text.encode()):
            return AuthReply(name="token")
        case Token(), "PLAIN", (_, _):
            return AuthReply(reason="it does not have the token of this run, which only its own processes have")
    return AuthReply(reason=f"it came by {request.mechanism}, which is not what this server asks for")


def _judge_key(public: str, lock: ServerKeys) -> AuthReply:
    if public == lock.pair.public:
        # Whoever has the server's own secret is the server: its shards, and a status asked on its machine.
        return AuthReply(name="server")
    try:
        name = lock.allowed().get(public)
    except LockstepError as error:
        return AuthReply(reason=f"nobody is let in: {error}")
    if name is None:
        return AuthReply(
            reason=f"its key {public!r} is not among those allowed (lockstep keys allow DIR NAME '{public}')"
        )
    return AuthReply(name=name)
