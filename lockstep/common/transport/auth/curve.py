"""Makes a ZeroMQ socket demand or present keys, and creates keys; sees neither a file nor a message."""

from collections.abc import Callable

import zmq

from lockstep.common.errors import KeyFileError
from lockstep.common.transport.auth.credentials import DOMAIN, ClientKeys, Credential, KeyPair, Lock, Token

#: Milliseconds that a handshake may take. Honest ones take a few round trips.
HANDSHAKE_MS = 4_000

#: Bytes that encryption adds to a frame before ZeroMQ compares its size with the limit: CurveZMQ's command name, nonce
#: and authenticator, and the frame's flags (rfc.zeromq.org/spec/26).
SEAL_BYTES = 8 + 8 + 16 + 1


def new_pair() -> KeyPair:
    """Return a new key."""
    check_curve()
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def public_of(secret: str) -> str:
    """Return the public half of a key."""
    check_curve()
    return zmq.curve_public(secret.encode()).decode()


def check_curve(has: Callable[[str], bool] = zmq.has) -> None:
    """Raise KeyFileError if the installed ZeroMQ cannot use keys."""
    if not has("curve"):
        raise KeyFileError(
            f"this ZeroMQ ({zmq.zmq_version()}) was built without CURVE and cannot use keys: expected one with "
            "libsodium, as in the wheels of pyzmq (pip install --force-reinstall --only-binary pyzmq pyzmq)"
        )


def secure_server(socket: "zmq.Socket[bytes]", lock: Lock) -> None:
    """Let a socket demand what the lock says. Its context needs an authenticator; without one no client gets in."""
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    # A socket with a domain takes no connections by ZeroMQ's protocols 1 and 2, which know no keys. In the first,
    # anything that a stranger sends, even HTTP, is a message, of which not even the connection is known.
    socket.set(zmq.ZAP_DOMAIN, DOMAIN)
    if lock is None:
        return
    # Otherwise ZeroMQ lets in every client that knows the server's public key if no authenticator answers.
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    if isinstance(lock, Token):
        socket.set(zmq.PLAIN_SERVER, 1)
        return
    check_curve()
    socket.set(zmq.CURVE_SERVER, 1)
    _present(socket, lock.pair)


def secure_client(socket: "zmq.Socket[bytes]", credential: Credential) -> None:
    """Let a socket present its credential; with keys, it talks only to the server that they name."""
    match credential:
        case ClientKeys():
            check_curve()
            socket.set(zmq.CURVE_SERVERKEY, credential.server.encode())
            _present(socket, credential.pair)
        case Token():
            socket.set(zmq.PLAIN_USERNAME, DOMAIN)
            socket.set(zmq.PLAIN_PASSWORD, credential.text.encode())
        case None:
            pass


def _present(socket: "zmq.Socket[bytes]", pair: KeyPair) -> None:
    socket.set(zmq.CURVE_PUBLICKEY, pair.public.encode())
    socket.set(zmq.CURVE_SECRETKEY, pair.secret.encode())
    socket.set(zmq.MAXMSGSIZE, int(socket.get(zmq.MAXMSGSIZE)) + SEAL_BYTES)
