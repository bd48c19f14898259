"""A client's port over ZeroMQ: a DEALER. Sees frames and never a message.

Why it has no connection: the answer of its address, the outcome of its handshakes, and the remedy.
"""

import socket
from contextlib import closing

import msgspec
import zmq
from msgspec.structs import replace

from lockstep.common.errors import AddressError, Diagnosis, Stage
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.address import Address, parse
from lockstep.common.transport.auth.credentials import ClientKeys, Credential, Token
from lockstep.common.transport.auth.curve import secure_client
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


#: Handshakes in a row that have to fail before that counts as the server's answer.
ENOUGH_FAILURES = 2

#: Seconds that a probe may take; looking up a host name may take longer.
TIMEOUT_S = 2.0

#: The beginning of a greeting by ZeroMQ's RFC 23: a signature and the major version 3. A server answers with its own.
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03"

#: The place in its 64 bytes at which the server names its security mechanism.
_MECHANISM = slice(12, 32)


class HandshakeState(msgspec.Struct, frozen=True, kw_only=True):
    """The reports of ZeroMQ about a client's handshakes."""

    #: Whether the client is connected.
    is_connected: bool = False
    #: Whether the server refused the client's credential.
    is_refused: bool = False
    #: Handshakes that failed in a row.
    failed: int = 0
    #: Whether ZeroMQ has stopped dialling, as it does after a protocol error of the other end.
    is_over: bool = False


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


#: The security mechanisms that clients' greetings name; without a credential it is NULL.
_MECHANISMS = {ClientKeys: "CURVE", Token: "PLAIN"}


def diagnose(
    address: str, credential: Credential, handshakes: HandshakeState, probed: Diagnosis | str
) -> Diagnosis | None:
    """Return what prevents a connection to `address`, where `probe` has found this; None if nothing is known to."""
    if handshakes.is_connected:
        return None
    if handshakes.is_refused:
        return Diagnosis(_refused(address, credential), Stage.KEY, is_final=True)
    if isinstance(probed, Diagnosis):
        return probed
    if not probed:
        return Diagnosis(f"the program at {address} is not a Lockstep server: check the port", Stage.SERVICE)
    if probed != _MECHANISMS.get(type(credential), "NULL"):
        return Diagnosis(_mismatch(address, credential, probed), Stage.KEY, is_final=True)
    if handshakes.failed >= ENOUGH_FAILURES:
        has_keys = isinstance(credential, ClientKeys)
        stage = Stage.KEY if has_keys else Stage.VERSION
        return Diagnosis(_broken_off(address, credential), stage, is_final=has_keys)
    return None


def _refused(address: str, credential: Credential) -> str:
    if isinstance(credential, ClientKeys):
        return (
            f"the server at {address} does not admit the key {credential.pair.public!r}: on its machine, `lockstep "
            f"keys allow DIR NAME '{credential.pair.public}'` adds it, where DIR is the folder that its --keys names"
        )
    return f"the server at {address} belongs to another run"


def _mismatch(address: str, credential: Credential, mechanism: str) -> str:
    match mechanism:
        case "CURVE":
            return f"the server at {address} requires a key: expected --key FILE, with a file from its owner"
        case "PLAIN":
            return f"the server at {address} belongs to `lockstep train`: it admits only the workers that it started"
        case _ if isinstance(credential, ClientKeys):
            return (
                f"the server at {address} has no keys, and cannot prove that it is yours: expected one that was "
                "started with --keys (without --key, any server at this address is accepted)"
            )
        case _:
            return f"the server at {address} requires {mechanism!r}, which Lockstep does not use: check the port"


def _broken_off(address: str, credential: Credential) -> str:
    if isinstance(credential, ClientKeys):
        return (
            f"the server at {address} breaks off the handshake: its key is not {credential.server!r}, which this key "
            "file names, or it cannot look up keys; compare `lockstep keys list DIR` on its machine"
        )
    return f"the server at {address} breaks off the handshake: install the same version of Lockstep on both machines"


def probe(address: str, timeout_s: float = TIMEOUT_S) -> Diagnosis | str:
    """Return the security mechanism of the ZeroMQ server at `address`, empty for another program, or the obstacle.

    Raises AddressError if the address is malformed.
    """
    try:
        with closing(parse(address).connect(timeout_s)) as connection:
            return _mechanism(_greeting(connection, timeout_s))
    except socket.gaierror as error:
        return Diagnosis(f"the host of {address} is not known here ({error.strerror}): check its name", Stage.NAME)
    except ConnectionRefusedError:
        return Diagnosis(f"nothing listens at {address}: start the server, or check the port", Stage.PORT)
    except FileNotFoundError:
        return Diagnosis(f"nothing listens at {address}: there is no such socket", Stage.PORT)
    except TimeoutError:
        text = f"nothing answers at {address} within {timeout_s:g} s: check the firewalls in between"
        return Diagnosis(text, Stage.FIREWALL)
    except OSError as error:
        return Diagnosis(f"{address} cannot be reached: {error.strerror or error}", Stage.ROUTE)


def _greeting(connection: socket.socket, timeout_s: float) -> bytes:
    """Return as much of a server's greeting as comes in time."""
    clock, greeting = SystemClock(), b""
    end = clock.now() + timeout_s
    try:
        connection.sendall(_GREETING)
        while len(greeting) < _MECHANISM.stop and (left := end - clock.now()) > 0.0:
            connection.settimeout(left)
            received = connection.recv(_MECHANISM.stop - len(greeting))
            if not received:
                break
            greeting += received
    except OSError:
        # It listens, and that is all that it sent.
        return greeting
    return greeting


def _mechanism(greeting: bytes) -> str:
    is_ours = len(greeting) == _MECHANISM.stop and greeting[0] == 0xFF and greeting[9] & 1
    return greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace") if is_ours else ""
