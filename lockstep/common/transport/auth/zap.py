"""Whether a connection is let in: the requests of ZeroMQ to an authenticator (RFC 27) and their answers. Pure."""

import hmac

from lockstep.common.errors import LockstepError
from lockstep.common.transport.auth.credentials import ServerKeys, Token

#: The domain of our sockets. ZeroMQ asks no authenticator about a socket without one.
DOMAIN = b"lockstep"


class NotAdmittedError(Exception):
    """A connection is not let in, for this reason."""


def authenticate(lock: ServerKeys | Token, domain: bytes, mechanism: str, credentials: tuple[str, ...]) -> str:
    """Return the name under which a connection is let in: only if everything is known to be right.

    The credentials of CURVE are a public key in Z85, those of PLAIN a user's name and the password. Raises
    NotAdmittedError otherwise.
    """
    if domain != DOMAIN:
        raise NotAdmittedError(f"the domain {domain!r} is not ours")
    match lock, mechanism, credentials:
        case ServerKeys(), "CURVE", (public,):
            return _name_of(public, lock)
        case Token(), "PLAIN", (_, password) if hmac.compare_digest(password.encode(), lock.text.encode()):
            return "token"
        case Token(), "PLAIN", (_, _):
            raise NotAdmittedError("it does not have the token of this run, which only its own processes have")
    raise NotAdmittedError(f"it uses the mechanism {mechanism}, which this server does not accept")


def _name_of(public: str, lock: ServerKeys) -> str:
    if public == lock.pair.public:
        # Whoever has the server's own secret is the server: its shards, and a status asked on its machine.
        return "server"
    try:
        return lock.allowed()[public]
    except LockstepError as error:
        raise NotAdmittedError(f"nobody is admitted: {error}") from None
    except KeyError:
        raise NotAdmittedError(
            f"its key {public!r} is not admitted (to admit it: lockstep keys allow DIR NAME '{public}')"
        ) from None
