"""What makes a ZeroMQ socket demand or show keys, and new keys; sees neither a file nor a message."""

import zmq

from common.errors import KeyFileError
from common.transport.auth.credentials import ClientKeys, Credential, KeyPair, Lock, Token
from common.transport.auth.zap import DOMAIN

#: Milliseconds that a handshake may take. Honest ones take a few round trips.
HANDSHAKE_MS = 4_000

#: Bytes by which a frame is longer under keys, and as such ZeroMQ compares it with the limit: CurveZMQ's command name,
#: nonce and authenticator, and the frame's flags (rfc.zeromq.org/spec/26).
SEAL_BYTES = 8 + 8 + 16 + 1


def new_pair() -> KeyPair:
    """Return a new key."""
    demand_curve()
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def public_of(secret: str) -> str:
    """Return the public half of a key."""
    demand_curve()
    return zmq.curve_public(secret.encode()).decode()


def demand_curve() -> None:
    """Raise KeyFileError where the installed ZeroMQ cannot use keys."""
    if not zmq.has("curve"):
        raise KeyFileError(
            f"this ZeroMQ ({zmq.zmq_version()}) was built without CURVE and cannot use keys: expected one with "
            "libsodium, as in the wheels of pyzmq (pip install --force-reinstall --only-binary pyzmq pyzmq)"
        )


def secure_server(socket: "zmq.Socket[bytes]", lock: Lock) -> None:
    """Let a socket demand what the lock says, of an authenticator in its context; without one nobody gets in."""
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    # A socket with a domain takes no connections by ZeroMQ's protocols 1 and 2, which know no keys. In the first,
    # whatever a stranger sends, be it HTTP, is a message, and one of which not even the connection is known.
    socket.set(zmq.ZAP_DOMAIN, DOMAIN)
    if lock is None:
        return
    # Otherwise ZeroMQ lets everybody in that knows the server's public key, where no authenticator answers.
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    if isinstance(lock, Token):
        socket.set(zmq.PLAIN_SERVER, 1)
        return
    demand_curve()
    socket.set(zmq.CURVE_SERVER, 1)
    _show(socket, lock.pair)


def secure_client(socket: "zmq.Socket[bytes]", credential: Credential) -> None:
    """Let a socket show who it is; with keys, it speaks only with the server whose key it was told."""
    match credential:
        case ClientKeys():
            demand_curve()
            socket.set(zmq.CURVE_SERVERKEY, credential.server.encode())
            _show(socket, credential.pair)
        case Token():
            socket.set(zmq.PLAIN_USERNAME, DOMAIN)
            socket.set(zmq.PLAIN_PASSWORD, credential.text.encode())
        case None:
            pass


def _show(socket: "zmq.Socket[bytes]", pair: KeyPair) -> None:
    socket.set(zmq.CURVE_PUBLICKEY, pair.public.encode())
    socket.set(zmq.CURVE_SECRETKEY, pair.secret.encode())
    socket.set(zmq.MAXMSGSIZE, int(socket.get(zmq.MAXMSGSIZE)) + SEAL_BYTES)
