"""The authenticator of one context: a thread that answers ZeroMQ whether a connection is let in (RFC 27).

Not pyzmq's: that needs an event loop, reads key files of any mode, lets in every client whose mechanism is NULL, and
does not report whom it refused.
"""

import hmac
import threading

import zmq
from zmq.utils import z85

from lockstep.common.errors import LockstepError
from lockstep.common.transport.auth.credentials import DOMAIN, SERVER_NAME, ServerKeys, Token
from lockstep.common.transport.limits import RejectionLog

#: The address at which ZeroMQ asks.
ENDPOINT = "inproc://zeromq.zap.01"

#: Status codes of RFC 27.
ACCEPTED, REFUSED = b"200", b"400"


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
        # A process with the server's own secret belongs to the server: its shards, and a status asked on its machine.
        return SERVER_NAME
    try:
        return lock.allowed()[public]
    except LockstepError as error:
        raise NotAdmittedError(f"no client is admitted: {error}") from None
    except KeyError:
        raise NotAdmittedError(
            f"its key {public!r} is not admitted (to admit it: lockstep keys allow DIR NAME '{public}')"
        ) from None


class Authenticator:
    """Answers until its context ends. If the thread dies, its socket is closed and ZeroMQ refuses all."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", lock: ServerKeys | Token, rejections: RejectionLog
    ) -> None:
        self._lock, self._rejections = lock, rejections
        self._socket = context.socket(zmq.REP)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(ENDPOINT)
        self.thread = threading.Thread(target=self._run, name="authenticator", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
        except zmq.ContextTerminated:
            return
        finally:
            self._socket.close()

    def _answer(self, frames: list[bytes]) -> list[bytes]:
        version, number, domain, address, _, mechanism, *credentials = frames
        host = address.decode("ascii", "replace") or "a local process"
        try:
            spelled = _spelled(mechanism, credentials)
            name = authenticate(self._lock, domain, mechanism.decode("ascii", "replace"), spelled)
            return [version, number, ACCEPTED, b"", name.encode(), b""]
        except NotAdmittedError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must refuse all
            reason = f"the authenticator failed: {type(error).__name__}: {error}"
        except BaseException as error:
            # Reported once: of those that come later is known only that their handshakes do not complete.
            self._rejections.record(
                f"refused {host}: the authenticator has died ({type(error).__name__}), and admits no client any more: "
                "restart the server"
            )
            raise
        self._rejections.record(f"refused {host}: {reason}")
        return [version, number, REFUSED, b"not allowed", b"", b""]


def _spelled(mechanism: bytes, credentials: list[bytes]) -> tuple[str, ...]:
    if mechanism == b"CURVE":
        return tuple(z85.encode(key).decode() for key in credentials if len(key) == 32)
    return tuple(text.decode("utf-8", "replace") for text in credentials)
