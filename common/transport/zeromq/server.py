"""The server's port over ZeroMQ: a ROUTER with its traps closed, shortcuts beside it. Sees frames, never a message."""

import errno
from collections import deque

import zmq

from common.errors import AddressError
from common.runtime.clock import SystemClock
from common.transport.address import IpcAddress, TcpAddress
from common.transport.auth.credentials import Lock
from common.transport.auth.curve import secure_server
from common.transport.ipc_path import SocketFile, private_files
from common.transport.limits.ingress_quota import IngressQuota
from common.transport.limits.rejection_log import RejectionLog
from common.transport.port import Frames, Limits, Shortcut
from common.transport.zeromq.authenticator import Authenticator
from common.transport.zeromq.connections import ConnectionTracker
from common.transport.zeromq.shortcuts import Shortcuts
from common.transport.zeromq.socket import LimitedSocket, Source

#: Seconds between two looks at what connections send that nothing comes of.
LOOK_S = 0.02

_CLOCK = SystemClock()

#: A message with its peer.
Received = tuple[bytes, list[memoryview]]

_BIND_ADVICE = {
    errno.EADDRINUSE: "is in use: stop what listens there, or choose another port or port 0 for any that is free",
    errno.EADDRNOTAVAIL: "is not an address of this machine: expected one, as 'tcp://127.0.0.1:5555'",
    errno.ENODEV: "has a host that is no address of this machine: expected one in digits, as 'tcp://127.0.0.1:5555'",
    errno.EACCES: "is not allowed for this user: choose a port above 1023, or a folder that you may write to",
    errno.ENOENT: "is in a folder that is not there: make it first",
    errno.ENOTDIR: "is in a folder that is not one: expected the path of a file in a folder",
}


class ZeroMqServer:
    """A ROUTER: libzmq gives each connection its identity, since two peers with one of their own lose one another."""

    def __init__(
        self, address: TcpAddress | IpcAddress, lock: Lock, limits: Limits, denials: RejectionLog | None
    ) -> None:
        self._socket = LimitedSocket(zmq.ROUTER, address, limits)
        # Without it, ROUTER drops silently what it cannot route or queue.
        self._socket.raw.set(zmq.ROUTER_MANDATORY, 1)
        #: Where nobody is to tell of them, they end no wait.
        self._tells_denials, self._denials = denials is not None, denials or RejectionLog()
        try:
            secure_server(self._socket.raw, lock)
            # First, so that there is someone to ask when the first connection comes.
            self.porter = None if lock is None else Authenticator(self._socket.context, lock, self._denials)
            self._bind(address)
        except BaseException:
            self._socket.close(0.0)
            raise
        self._ends = ConnectionTracker(self._socket.raw, self._denials, _CLOCK)
        self._socket.watch(self._ends.monitor)
        self._file = SocketFile(address.path) if isinstance(address, IpcAddress) else None
        self._address = self._socket.raw.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._rations = IngressQuota(limits)
        self._shortcuts = Shortcuts(self._socket)
        #: Where something has come, and was not looked at yet.
        self._ready: deque[Source] = deque()
        self._looked = _CLOCK.now()

    def _bind(self, address: TcpAddress | IpcAddress) -> None:
        try:
            with private_files():
                self._socket.raw.bind(str(address))
        except zmq.ZMQError as error:
            advice = _BIND_ADVICE.get(error.errno or 0, f"cannot be bound to ({error.strerror}): choose another")
            raise AddressError(f"address {str(address)!r} {advice}") from None

    @property
    def address(self) -> str:
        return self._address

    def receive(self, timeout_s: float | None) -> Received | None:
        self._socket.demand_open()
        now = _CLOCK.now()
        end = None if timeout_s is None else now + timeout_s
        while True:
            self._look(now)
            if not self._ready:
                self._ready.extend(self._socket.wait(self._wait_s(now, end)))
                now = _CLOCK.now()
            # All are looked at before an end is, and once more after it: nobody's is told before his last words.
            received = self._take_ready() or self._take_any()
            if received is not None:
                return received
            self._ends.look()
            if self._ends.has_any() or self._has_denials(now):
                return self._take_any()
            # Otherwise it was the end of one that was never heard, and concerns nobody.
            if end is not None and now >= end:
                return None

    def _take_ready(self) -> Received | None:
        """Return a message from where one may be; each such place is looked at in its turn."""
        while self._ready:
            source = self._ready.popleft()
            if isinstance(source, int):
                received = self._shortcuts.take(source)
            else:
                received = self._take() if source is self._socket.raw else None
            if received is not None:
                return received
        return None

    def _take_any(self) -> Received | None:
        """Return a message from anywhere."""
        self._ready.extend([self._socket.raw, *self._shortcuts.descriptors()])
        return self._take_ready()

    def _take(self) -> Received | None:
        """Return a message that came over ZeroMQ, of which no more frames are there than may be."""
        while (frames := self._socket.take(extra=1)) is not None:
            peer = bytes(frames[0])
            if len(frames) - 1 > self._socket.limits.frames:
                # On to what waits behind it.
                self._cut_long(peer)
                continue
            self._ends.heard(peer, self._socket.first)
            self._rations.heard[peer] += 1
            return peer, frames[1:]
        return None

    def _cut_long(self, peer: bytes) -> None:
        """Cut off a peer whose message, just read, has too many frames."""
        self._denials.note(f"cut off a peer: its message has more than {self._socket.limits.frames} frames")
        self._ends.heard(peer, self._socket.first)
        self._ends.cut(peer)

    def _has_denials(self, now: float) -> bool:
        return self._tells_denials and self._denials.has_news(now)

    def _wait_s(self, now: float, end: float | None) -> float | None:
        left = None if end is None else end - now
        if not self.has_connections():
            return left
        return LOOK_S if left is None else min(left, LOOK_S)

    def has_connections(self) -> bool:
        """Tell whether anybody is connected."""
        return self._ends.has_open()

    def _look(self, now: float) -> None:
        """Cut off who sends and sends, and of whom no message ever is whole."""
        if now < self._looked + LOOK_S:
            return
        self._looked = now
        self._ends.look()
        for descriptor in self._rations.gluttons(self._ends.flows()):
            self._denials.note(f"cut off a peer: its message of more than {self._rations.allowance} bytes has no end")
            self._ends.cut_off(descriptor)

    def cut(self, peer: bytes) -> None:
        self._socket.demand_open()
        self._shortcuts.drop(peer)
        self._ends.cut(peer)

    def lost(self) -> list[bytes]:
        self._socket.demand_open()
        lost = self._ends.take()
        for peer in lost:
            self._shortcuts.drop(peer)
            del self._rations.heard[peer]
        return lost

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller wait for this port among others."""
        self._socket.register(poller)
        poller.register(self._ends.monitor, zmq.POLLIN)
        for descriptor in self._shortcuts.descriptors():
            poller.register(descriptor, zmq.POLLIN)

    def send(self, peer: bytes, frames: Frames) -> None:
        self._socket.limits.check(frames)
        if not self._shortcuts.send(peer, frames):
            self._socket.send([peer, *frames])

    def shorten(self, peer: bytes, shortcut: Shortcut) -> None:
        self._socket.demand_open()
        self._shortcuts.add(peer, shortcut)

    def allow(self, queue: int) -> None:
        # For connections that are there: a later one gets what was set when the socket was bound.
        self._socket.raw.set(zmq.SNDHWM, max(queue, self._socket.limits.queue))

    def close(self, linger_s: float = 0.0) -> None:
        if self._file is not None:
            # First, while nobody else can have bound to it.
            self._file.remove()
            self._file = None
        self._shortcuts.close()
        self._ends.close()
        self._socket.close(linger_s)
