"""The authenticator of one context: a thread that answers ZeroMQ whether a connection is let in.

Not pyzmq's: that needs an event loop, reads key files of any mode, lets in every client whose mechanism is NULL, and
does not report whom it refused.
"""

import threading

import zmq
from zmq.utils import z85

from lockstep.common.transport.auth.credentials import ServerKeys, Token
from lockstep.common.transport.auth.zap import AuthReply, Request, authenticate
from lockstep.common.transport.limits import RejectionLog

#: Where ZeroMQ asks.
ENDPOINT = "inproc://zeromq.zap.01"

#: Status codes of RFC 27.
ACCEPTED, REFUSED = b"200", b"400"


class Authenticator:
    """Answers until its context ends. If the thread dies, its socket is closed and ZeroMQ lets nobody in."""

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
        request = Request(
            domain=domain,
            address=address.decode("ascii", "replace"),
            mechanism=mechanism.decode("ascii", "replace"),
            credentials=_spelled(mechanism, credentials),
        )
        host = request.address or "a local process"
        try:
            verdict = self._authenticate(request)
        except BaseException as error:
            # Reported once: of those that come later is known only that their handshakes do not complete.
            self._rejections.record(
                f"refused {host}: the authenticator has died ({type(error).__name__}), and admits nobody any more: "
                "restart the server"
            )
            raise
        if verdict.is_accepted:
            return [version, number, ACCEPTED, b"", verdict.name.encode(), b""]
        self._rejections.record(f"refused {host}: {verdict.reason}")
        return [version, number, REFUSED, b"not allowed", b"", b""]

    def _authenticate(self, request: Request) -> AuthReply:
        try:
            return authenticate(request, self._lock)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must let nobody in
            return AuthReply(reason=f"the authenticator failed: {type(error).__name__}: {error}")


def _spelled(mechanism: bytes, credentials: list[bytes]) -> tuple[str, ...]:
    if mechanism == b"CURVE":
        return tuple(z85.encode(key).decode() for key in credentials if len(key) == 32)
    return tuple(text.decode("utf-8", "replace") for text in credentials)
