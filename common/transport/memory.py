"""The ports within one process and one thread, for tests and simulations: what is heard next is drawn from a seed.

Nothing waits: `receive` returns None as soon as nothing is on its way to that end. One network has one server at a
time, before or after its clients; a client of a closed server dials the next one, under a new identity.
"""

from collections import deque
from dataclasses import dataclass, field

from common.errors import AddressError, ProtocolError
from common.random import Purpose, generator
from common.transport.port import Frames, Limits, PeerGone, PeerSlow, Shortcut

_Message = list[memoryview]


@dataclass
class _Line:
    """What one client and the servers that it dials share."""

    #: Names the connection; None while there is no server.
    peer: bytes | None = None
    to_server: deque[_Message] = field(default_factory=deque)
    to_client: deque[_Message] = field(default_factory=deque)
    is_client_open: bool = True


class MemoryNetwork:
    """A server and its clients, whose messages arrive in an order that depends on the seed and the calls alone."""

    def __init__(self, seed: int, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        #: Messages that may wait for one client: more than `limits` says where the server allowed them.
        self.queue = self.limits.queue
        # A layer of its own: no permutation of data is drawn from there.
        self._rng = generator(seed, Purpose.SHUFFLE, layer=1)
        self._server: MemoryServer | None = None
        self._lines: list[_Line] = []
        self._connections = 0
        #: Connections that the server ended, and was not told of yet.
        self._cut: list[bytes] = []

    def server(self) -> "MemoryServer":
        """Return the server; raises AddressError while there is another."""
        if self._server is not None:
            raise AddressError(f"address {self._server.address!r} is in use: close that server first")
        self._server = MemoryServer(self)
        for line in self._lines:
            self.connect(line)
        return self._server

    def client(self) -> "MemoryClient":
        """Return another client."""
        line = _Line()
        self._lines.append(line)
        if self._server is not None:
            self.connect(line)
        return MemoryClient(self.limits, line)

    def lines(self) -> list[_Line]:
        """Return what is between the server and each of its clients, for tests that lose some of it."""
        return self._lines

    def connect(self, line: _Line) -> None:
        self._connections += 1
        line.peer = self._connections.to_bytes(5, "big")

    def disconnect(self) -> None:
        """Forget the server; what was on its way to it is lost, as is a client that has gone."""
        self._server = None
        self._lines = [line for line in self._lines if line.is_client_open]
        for line in self._lines:
            line.peer = None
            line.to_server.clear()

    def line_of(self, peer: bytes) -> _Line | None:
        return next((line for line in self._lines if line.peer == peer and line.is_client_open), None)

    def cut(self, peer: bytes) -> None:
        """End a connection; its client dials again, as over a socket."""
        line = self.line_of(peer)
        if line is not None:
            self._cut.append(peer)
            line.to_server.clear()
            self.connect(line)

    def closed(self) -> list[bytes]:
        """Return the names of the connections of which nothing will come any more; each is told once."""
        ended = [line for line in self._lines if line.peer is not None and not (line.is_client_open or line.to_server)]
        peers = [line.peer for line in ended if line.peer is not None]
        for line in ended:
            line.peer = None
        cut, self._cut = self._cut, []
        return cut + peers

    def draw(self) -> _Line | None:
        """Return a line on which something is on its way to the server."""
        waiting = [line for line in self._lines if line.to_server]
        return waiting[int(self._rng.integers(len(waiting)))] if waiting else None


class MemoryServer:
    """The end that hears all clients."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._is_open = True

    @property
    def address(self) -> str:
        return "memory://"

    def receive(self, timeout_s: float | None) -> tuple[bytes, _Message] | None:
        _demand_open(self._is_open)
        line = self._network.draw()
        if line is None or line.peer is None:
            return None
        return line.peer, line.to_server.popleft()

    def send(self, peer: bytes, frames: Frames) -> None:
        _demand_open(self._is_open)
        self._network.limits.check(frames)
        line = self._network.line_of(peer)
        if line is None:
            raise PeerGone("no connection to this peer: expected one that was heard and has not gone")
        _put(line.to_client, frames, self._network.queue)

    def lost(self) -> list[bytes]:
        _demand_open(self._is_open)
        return self._network.closed()

    def cut(self, peer: bytes) -> None:
        _demand_open(self._is_open)
        self._network.cut(peer)

    def allow(self, queue: int) -> None:
        self._network.queue = max(self._network.queue, queue)

    def shorten(self, peer: bytes, shortcut: Shortcut) -> None:
        shortcut.close()

    def close(self, linger_s: float = 0.0) -> None:
        if self._is_open:
            self._is_open = False
            self._network.disconnect()


class MemoryClient:
    """One of the ends that the server hears."""

    def __init__(self, limits: Limits, line: _Line) -> None:
        self._limits = limits
        self._line = line

    def receive(self, timeout_s: float | None) -> _Message | None:
        _demand_open(self._line.is_client_open)
        return self._line.to_client.popleft() if self._line.to_client else None

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        _demand_open(self._line.is_client_open)
        self._limits.check(frames)
        _put(self._line.to_server, frames, self._limits.queue)

    def shorten(self, shortcut: Shortcut | None) -> None:
        if shortcut is not None:
            shortcut.close()

    def close(self, linger_s: float = 0.0) -> None:
        self._line.is_client_open = False


def _put(queue: deque[_Message], frames: Frames, limit: int) -> None:
    if len(queue) >= limit:
        raise PeerSlow(f"too many messages wait for this peer: expected at most {limit}")
    # A copy, so that a sender that overwrites its buffer is not seen, as over a socket.
    queue.append([memoryview(bytes(frame)) for frame in frames])


def _demand_open(is_open: bool) -> None:
    if not is_open:
        raise ProtocolError("this port is closed: expected no more sends and receives after close()")
