"""A client's port over ZeroMQ: a DEALER with its traps closed, a shortcut beside it. Sees frames, never a message."""

from collections import deque

import zmq

from common.errors import AddressError
from common.runtime.interrupts import held_back
from common.transport.address import IpcAddress, TcpAddress
from common.transport.auth.credentials import Credential
from common.transport.auth.curve import secure_client
from common.transport.diagnosis import Diagnosis, Found, explained
from common.transport.port import Frames, Limits, PeerGone, PeerSlow, Shortcut
from common.transport.probe import look_at
from common.transport.shared_memory.packet_socket import is_short
from common.transport.zeromq.handshakes import Handshakes
from common.transport.zeromq.socket import LimitedSocket, milliseconds

# A worker that starts first dials at once when its server comes, and does not storm one that stays away.
_REDIAL_MS = 20
_REDIAL_MOST_MS = 1_000
_CONNECT_MS = 5_000


class ZeroMqClient:
    """A DEALER; what it sends before it is connected waits in its queue."""

    def __init__(self, address: TcpAddress | IpcAddress, credential: Credential, limits: Limits) -> None:
        self._address, self._credential = str(address), credential
        self._socket = LimitedSocket(zmq.DEALER, address, limits)
        self._socket.raw.set(zmq.RECONNECT_IVL, _REDIAL_MS)
        self._socket.raw.set(zmq.RECONNECT_IVL_MAX, _REDIAL_MOST_MS)
        self._socket.raw.set(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        self._shortcut: Shortcut | None = None
        #: Whether the server was heard on it: before that, it may not listen there.
        self._is_heard_there = False
        #: What was left on the one before.
        self._left: deque[list[memoryview]] = deque()
        self._handshakes = Handshakes(self._socket.raw)
        try:
            secure_client(self._socket.raw, credential)
            self._socket.raw.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"address {self._address!r} cannot be dialled ({error.strerror}): correct it") from None
        except BaseException:
            self.close()
            raise

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        if self._left:
            return self._left.popleft()
        for source in self._socket.wait(timeout_s):
            frames = self._take_short() if isinstance(source, int) else self._socket.take(extra=0)
            if frames is not None and len(frames) <= self._socket.limits.frames:
                return frames
        # Now and then it has to be read: ZeroMQ would wait for ever to tell us more.
        self._handshakes.look()
        return None

    def _take_short(self) -> list[memoryview] | None:
        """Return the next message that came over the shortcut."""
        if self._shortcut is None:
            return None
        try:
            packet = self._shortcut.receive()
        except PeerGone:
            self._end_shortcut()
            return None
        if packet is None:
            return None
        self._is_heard_there = True
        return [memoryview(packet)]

    def shorten(self, shortcut: Shortcut | None) -> None:
        while (frames := self._take_short()) is not None:
            self._left.append(frames)
        with held_back():
            self._end_shortcut()
            if shortcut is not None:
                self._shortcut = shortcut
                self._socket.watch(shortcut.descriptor)

    def _end_shortcut(self) -> None:
        with held_back():
            if self._shortcut is not None:
                self._socket.unwatch(self._shortcut.descriptor)
                self._shortcut.close()
            self._shortcut, self._is_heard_there = None, False

    def _send_short(self, frames: Frames, timeout_s: float) -> bool:
        """Send a short message over the shortcut; return whether it was."""
        if self._shortcut is None or not self._is_heard_there or not is_short(frames):
            return False
        try:
            self._shortcut.send(frames[0], timeout_s)
        except PeerGone:
            # What the server has said before that may still be there: whoever reads finds the end.
            self._is_heard_there = False
            return False
        return True

    def trouble(self) -> Diagnosis | None:
        """Return what is in the way of a connection, None where nothing is known to be; may take some seconds."""
        heard = self._handshakes.look()
        is_told = heard.is_through or heard.is_refused
        return explained(self._address, self._credential, heard, Found() if is_told else look_at(self._address))

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller wait for this port among others."""
        self._socket.register(poller)
        if self._shortcut is not None:
            poller.register(self._shortcut.descriptor, zmq.POLLIN)

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self._socket.limits.check(frames)
        if self._send_short(frames, timeout_s):
            return
        try:
            self._socket.send(frames)
        except PeerSlow:
            # Asked only now, since nearly always there is room.
            if self._handshakes.look().is_over:
                self._redial()
            elif timeout_s <= 0.0 or not self._socket.raw.poll(milliseconds(timeout_s), zmq.POLLOUT):
                raise
            self._socket.send(frames)

    def _redial(self) -> None:
        """Dial anew where ZeroMQ has given up for good, and taken the queue along: another may listen there by now."""
        # Otherwise it counts as dialled still, and nothing happens.
        self._socket.raw.disconnect(self._address)
        self._socket.raw.connect(self._address)

    def close(self, linger_s: float = 0.0) -> None:
        if not self._socket.raw.closed:
            self._end_shortcut()
            self._left.clear()
        self._handshakes.close()
        self._socket.close(linger_s)
