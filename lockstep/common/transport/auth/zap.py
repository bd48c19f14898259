"""Whether a connection is let in: the requests of ZeroMQ to an authenticator (RFC 27) and their answers. Pure."""

import hmac
from dataclasses import dataclass

from lockstep.common.errors import LockstepError
from lockstep.common.transport.auth.credentials import ServerKeys, Token

#: The domain of our sockets. ZeroMQ asks no authenticator about a socket without one.
DOMAIN = b"lockstep"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One connection that asks to be let in."""

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
    def is_accepted(self) -> bool:
        """Tell whether the connection is let in."""
        return not self.reason


def authenticate(request: Request, lock: ServerKeys | Token) -> AuthReply:
    """Return whether a connection is let in: only if everything is known to be right."""
    if request.domain != DOMAIN:
        return AuthReply(reason=f"the domain {request.domain!r} is not ours")
    match lock, request.mechanism, request.credentials:
        case ServerKeys(), "CURVE", (public,):
            return _authenticate_key(public, lock)
        case Token(), "PLAIN", (_, password) if hmac.compare_digest(password.encode(), lock.text.encode()):
            return AuthReply(name="token")
        case Token(), "PLAIN", (_, _):
            return AuthReply(reason="it does not have the token of this run, which only its own processes have")
    return AuthReply(reason=f"it uses the mechanism {request.mechanism}, which this server does not accept")


def _authenticate_key(public: str, lock: ServerKeys) -> AuthReply:
    if public == lock.pair.public:
        # Whoever has the server's own secret is the server: its shards, and a status asked on its machine.
        return AuthReply(name="server")
    try:
        name = lock.allowed().get(public)
    except LockstepError as error:
        return AuthReply(reason=f"nobody is admitted: {error}")
    if name is None:
        return AuthReply(
            reason=f"its key {public!r} is not admitted (to admit it: lockstep keys allow DIR NAME '{public}')"
        )
    return AuthReply(name=name)
