"""A client's port over ZeroMQ: a DEALER. Sees frames and never a message."""

import zmq
from msgspec.structs import replace

from lockstep.common.errors import AddressError, Diagnosis
from lockstep.common.transport.address import Address
from lockstep.common.transport.auth.credentials import Credential
from lockstep.common.transport.auth.curve import secure_client
from lockstep.common.transport.diagnosis import ENOUGH_FAILURES, HandshakeState, diagnose, probe
from lockstep.common.transport.port import Frames, Limits, PeerSlow
from lockstep.common.transport.zeromq.socket import LimitedSocket, has_message, milliseconds, monitored_event

# A worker that starts first connects as soon as its server is there, and does not flood one that is away.
_REDIAL_MS = 20
_REDIAL_MOST_MS = 1_000
_CONNECT_MS = 5_000

_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


class ZeroMqClient:
    """A DEALER; what it sends before it is connected waits in its queue."""

    def __init__(self, address: Address, credential: Credential, limits: Limits) -> None:
        self._address, self._credential = str(address), credential
        self._socket = LimitedSocket(zmq.DEALER, address, limits)
        self._socket.raw.set(zmq.RECONNECT_IVL, _REDIAL_MS)
        self._socket.raw.set(zmq.RECONNECT_IVL_MAX, _REDIAL_MOST_MS)
        self._socket.raw.set(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        self._handshakes = Handshakes(self._socket.raw)
        try:
            secure_client(self._socket.raw, credential)
            self._socket.raw.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(
                f"address {self._address!r} cannot be connected to ({error.strerror}): correct it"
            ) from None
        except BaseException:
            self.close()
            raise

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        self._socket.check_open()
        frames = self._socket.receive(0, timeout_s)
        if frames is not None and len(frames) <= self._socket.limits.frames:
            return frames
        if timeout_s != 0.0:
            self.read_events()
        return None

    def read_events(self) -> None:
        """Read the events of ZeroMQ, which blocks for ever if they are not read now and then: in each pause."""
        self._handshakes.poll()

    @property
    def is_failing(self) -> bool:
        """True if so many handshakes have failed that others will too; unlike a diagnosis, this asks no server."""
        state = self._handshakes.poll()
        return not state.is_connected and (state.is_refused or state.failed >= ENOUGH_FAILURES)

    def diagnosis(self) -> Diagnosis | None:
        """Return what prevents a connection; None if nothing is known to. May take some seconds."""
        state = self._handshakes.poll()
        is_known = state.is_connected or state.is_refused
        return diagnose(self._address, self._credential, state, "" if is_known else probe(self._address))

    def waited_for(self) -> "list[zmq.Socket[bytes]]":
        """Return what to wait for, if this port is waited for among others."""
        self._socket.check_open()
        return [self._socket.raw]

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self._socket.limits.check(frames)
        try:
            self._socket.send(frames)
        except PeerSlow:
            # Checked only now, since there is nearly always room.
            if self._handshakes.poll().is_over:
                self._redial()
            elif timeout_s <= 0.0 or not self._socket.raw.poll(milliseconds(timeout_s), zmq.POLLOUT):
                raise
            self._socket.send(frames)

    def _redial(self) -> None:
        """Dial again after ZeroMQ has given up and dropped the queue: another server may listen there by now."""
        # Otherwise it still counts as dialled, and nothing happens.
        self._socket.raw.disconnect(self._address)
        self._socket.raw.connect(self._address)

    def close(self, linger_s: float = 0.0) -> None:
        self._handshakes.close()
        self._socket.close(linger_s)


class Handshakes:
    """The handshakes of one socket. Close it before the socket, or its context never ends."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(_EVENTS)
        self._state = HandshakeState()

    def poll(self) -> HandshakeState:
        """Read the events of ZeroMQ; return the state after them."""
        while not self._monitor.closed and has_message(self._monitor):
            self._record(monitored_event(self._monitor)[0])
        return self._state

    def _record(self, event: int) -> None:
        match event:
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._state = HandshakeState(is_connected=True)
            case zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_DELAYED | zmq.EVENT_CONNECT_RETRIED:
                self._state = replace(self._state, is_over=False)
            case zmq.EVENT_DISCONNECTED:
                # Unless the next event is that it will be tried again.
                self._state = replace(self._state, is_connected=False, is_over=True)
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._state = replace(self._state, is_refused=True, failed=self._state.failed + 1)
            case _:
                self._state = replace(self._state, failed=self._state.failed + 1)

    def close(self) -> None:
        if not self._monitor.closed:
            self._socket.disable_monitor()
            self._monitor.close(0)
