"""The ports over ZeroMQ, by tcp or ipc: ROUTER and DEALER with their traps closed. Sees frames and never a message."""

import errno
import math
from collections.abc import Sequence
from contextlib import suppress

import zmq

from common.clock import SystemClock
from common.errors import AddressError, ProtocolError
from common.transport.address import IpcAddress, TcpAddress, parse
from common.transport.ipc_path import SocketFile, make_free
from common.transport.port import Frame, Frames, Limits, PeerGone, PeerSlow
from common.transport.zeromq_ends import Ends

# Heartbeats find a host that is gone without a word. They wait behind the frame that is being sent, and with it count
# as lost: so the patience must exceed the time of the biggest frame. A peer that hangs is for leases to find.
_HEARTBEAT_MS = 5_000
_PATIENCE_MS = 30_000

# A worker that starts first dials at once when its server comes, and does not storm one that stays away.
_REDIAL_MS = 20
_REDIAL_MOST_MS = 1_000
_CONNECT_MS = 5_000

_CLOCK = SystemClock()

_BIND_ADVICE = {
    errno.EADDRINUSE: "is in use: stop what listens there, or choose another port or port 0 for any that is free",
    errno.EADDRNOTAVAIL: "is not an address of this machine: expected one, as 'tcp://127.0.0.1:5555'",
    errno.ENODEV: "has a host that is no address of this machine: expected one in digits, as 'tcp://127.0.0.1:5555'",
    errno.EACCES: "is not allowed for this user: choose a port above 1023, or a folder that you may write to",
    errno.ENOENT: "is in a folder that is not there: make it first",
    errno.ENOTDIR: "is in a folder that is not one: expected the path of a file in a folder",
}


def serve(address: str, *, insecure: bool = False, limits: Limits | None = None) -> "ZeroMqServer":
    """Return a server that listens at `address`; its folder must exist, and port 0 or `*` is any that is free.

    Raises AddressError where the address is malformed, in use, or open to other machines without `insecure`.
    """
    parsed = parse(address)
    if isinstance(parsed, IpcAddress):
        make_free(parsed.path)
    elif not (parsed.is_loopback or insecure):
        raise AddressError(
            f"address {address!r} is open to other machines, whoever they are: expected 127.0.0.1, ::1, localhost or "
            "ipc; bind to it with --insecure only on a network that you trust"
        )
    return ZeroMqServer(parsed, limits or Limits())


def dial(address: str, *, limits: Limits | None = None) -> "ZeroMqClient":
    """Return a client of the server at `address`, whether that is there yet or not; raises AddressError."""
    parsed = parse(address)
    if isinstance(parsed, TcpAddress) and (parsed.port == 0 or parsed.host == "*"):
        raise AddressError(f"address {address!r} names no one server: expected its host and port, as the server shows")
    return ZeroMqClient(parsed, limits or Limits())


def wait_for_any(ports: Sequence[object], timeout_s: float | None) -> None:
    """Wait until one of these ports of ours may have a message, or for so many seconds; None is for ever."""
    poller = zmq.Poller()
    for port in ports:
        assert isinstance(port, ZeroMqServer | ZeroMqClient)
        port.register(poller)
    poller.poll(_milliseconds(timeout_s))


class ZeroMqServer:
    """A ROUTER: libzmq gives each connection its identity, since two peers with one of their own lose one another."""

    def __init__(self, address: TcpAddress | IpcAddress, limits: Limits) -> None:
        self._socket = _Socket(zmq.ROUTER, address, limits)
        # Without it, ROUTER drops silently what it cannot route or queue.
        self._socket.raw.set(zmq.ROUTER_MANDATORY, 1)
        try:
            self._socket.raw.bind(_bindable(address))
        except zmq.ZMQError as error:
            self._socket.close(0.0)
            advice = _BIND_ADVICE.get(error.errno or 0, f"cannot be bound to ({error.strerror}): choose another")
            raise AddressError(f"address {str(address)!r} {advice}") from None
        self._ends = Ends(self._socket.raw)
        self._socket.watch(self._ends.monitor)
        self._file = SocketFile(address.path) if isinstance(address, IpcAddress) else None
        self._address = self._socket.raw.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    @property
    def address(self) -> str:
        return self._address

    def receive(self, timeout_s: float | None) -> tuple[bytes, list[memoryview]] | None:
        began = _CLOCK.now()
        frames = self._socket.receive(timeout_s, extra=1)
        while frames is None:
            self._ends.look()
            left_s = None if timeout_s is None else began + timeout_s - _CLOCK.now()
            if self._ends.has_any() or (left_s is not None and left_s <= 0.0):
                return None
            # It was the end of one that was never heard, and concerns nobody.
            frames = self._socket.receive(left_s, extra=1)
        peer = bytes(frames[0])
        self._ends.heard(peer, self._socket.first)
        return peer, frames[1:]

    def lost(self) -> list[bytes]:
        self._socket.demand_open()
        return self._ends.take()

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller wait for this port among others."""
        self._socket.register(poller)
        poller.register(self._ends.monitor, zmq.POLLIN)

    def send(self, peer: bytes, frames: Frames) -> None:
        self._socket.limits.check(frames)
        self._socket.send([peer, *frames])

    def allow(self, queue: int) -> None:
        # For connections that are there: a later one gets what was set when the socket was bound.
        self._socket.raw.set(zmq.SNDHWM, max(queue, self._socket.limits.queue))

    def close(self, linger_s: float = 0.0) -> None:
        if self._file is not None:
            # First, while nobody else can have bound to it.
            self._file.remove()
            self._file = None
        self._ends.close()
        self._socket.close(linger_s)


class ZeroMqClient:
    """A DEALER; what it sends before it is connected waits in its queue."""

    def __init__(self, address: TcpAddress | IpcAddress, limits: Limits) -> None:
        self._socket = _Socket(zmq.DEALER, address, limits)
        self._socket.raw.set(zmq.RECONNECT_IVL, _REDIAL_MS)
        self._socket.raw.set(zmq.RECONNECT_IVL_MAX, _REDIAL_MOST_MS)
        self._socket.raw.set(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        try:
            self._socket.raw.connect(str(address))
        except zmq.ZMQError as error:
            self._socket.close(0.0)
            raise AddressError(f"address {str(address)!r} cannot be dialled ({error.strerror}): correct it") from None

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        return self._socket.receive(timeout_s, extra=0)

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller wait for this port among others."""
        self._socket.register(poller)

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self._socket.limits.check(frames)
        try:
            self._socket.send(frames)
        except PeerSlow:
            # Asked only now, since nearly always there is room.
            if timeout_s <= 0.0 or not self._socket.raw.poll(_milliseconds(timeout_s), zmq.POLLOUT):
                raise
            self._socket.send(frames)

    def close(self, linger_s: float = 0.0) -> None:
        self._socket.close(linger_s)


class _Socket:
    """One ZeroMQ socket with its own context, limited at both ends, that never blocks for longer than it is told."""

    def __init__(self, kind: int, address: TcpAddress | IpcAddress, limits: Limits) -> None:
        self.limits = limits
        self._context = zmq.Context()
        self.raw = self._context.socket(kind)
        self._poller = zmq.Poller()
        self._poller.register(self.raw, zmq.POLLIN)
        #: The first frame of the last message.
        self.first = zmq.Frame()
        for option, value in (
            # The default waits for ever when the socket is closed.
            (zmq.LINGER, 0),
            # These count messages. Frames are short, so that they bound bytes too.
            (zmq.SNDHWM, limits.queue),
            (zmq.RCVHWM, limits.backlog),
            (zmq.MAXMSGSIZE, limits.frame_bytes),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, _PATIENCE_MS),
            (zmq.HEARTBEAT_TTL, _PATIENCE_MS),
            (zmq.IPV6, int(isinstance(address, TcpAddress) and address.is_ipv6)),
        ):
            self.raw.set(option, value)

    def register(self, poller: zmq.Poller) -> None:
        self.demand_open()
        poller.register(self.raw, zmq.POLLIN)

    def watch(self, other: "zmq.Socket[bytes]") -> None:
        """Let what comes on another socket end the wait for a message."""
        self._poller.register(other, zmq.POLLIN)

    def receive(self, timeout_s: float | None, extra: int) -> list[memoryview] | None:
        """Return the frames of a message, of which `extra` do not count; None in time, or where it was too long."""
        self.demand_open()
        if not self._poller.poll(_milliseconds(timeout_s)):
            return None
        frames: list[memoryview] = []
        has_more, is_too_long = True, False
        while has_more:
            try:
                frame = self.raw.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return None
            has_more = frame.more
            if not frames:
                self.first = frame
            if len(frames) < self.limits.frames + extra:
                # The view keeps the frame, and with it libzmq's own buffer: nothing is copied.
                frames.append(memoryview(frame.buffer).toreadonly())
            else:
                is_too_long = True
        return None if is_too_long else frames

    def send(self, frames: Sequence[Frame]) -> None:
        self.demand_open()
        try:
            # A copy, since libzmq sends later and the caller overwrites its buffer now.
            self.raw.send_multipart(frames, zmq.DONTWAIT, copy=True)
        except zmq.Again:
            raise PeerSlow(f"too many messages wait for this peer: expected at most {self.limits.queue}") from None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise PeerGone("no connection to this peer: expected one that was heard and has not gone") from None
        except BaseException:
            # A signal handler raised. Half a message would swallow the next one: end it, and let its peer refuse it.
            with suppress(zmq.ZMQError):
                self.raw.send(b"", zmq.DONTWAIT)
            raise

    def close(self, linger_s: float) -> None:
        if self.raw.closed:
            return
        self._poller.unregister(self.raw)
        self.raw.close(_milliseconds(linger_s))
        # Waits until the socket has lingered, so that a process may exit after this.
        self._context.term()

    def demand_open(self) -> None:
        if self.raw.closed:
            raise ProtocolError("this port is closed: expected no more sends and receives after close()")


def _milliseconds(seconds: float | None) -> int | None:
    """Return whole milliseconds, rounded up so that a deadline has passed when the wait is over."""
    return None if seconds is None else min(math.ceil(max(seconds, 0.0) * 1000.0), 2**31 - 1)


def _bindable(address: TcpAddress | IpcAddress) -> str:
    # libzmq binds to addresses and interfaces, and takes "localhost" for the name of one.
    if isinstance(address, TcpAddress) and address.host == "localhost":
        return str(TcpAddress("127.0.0.1", address.port))
    return str(address)
