"""The server's port over ZeroMQ: a ROUTER. Sees frames and never a message."""

import errno

import zmq
from msgspec.structs import replace

from lockstep.common.errors import AddressError
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.address import IpcAddress, TcpAddress, parse
from lockstep.common.transport.auth.credentials import SERVER_NAME, Lock, ServerKeys
from lockstep.common.transport.auth.curve import secure_server
from lockstep.common.transport.ipc_path import SocketFile, private_files
from lockstep.common.transport.limits import IngressQuota, RejectionLog
from lockstep.common.transport.port import Frames, Limits
from lockstep.common.transport.zeromq.authenticator import Authenticator
from lockstep.common.transport.zeromq.connections import ConnectionTracker
from lockstep.common.transport.zeromq.socket import LimitedSocket

#: A message with its peer.
Received = tuple[bytes, list[memoryview]]

#: Seconds between two checks of the bytes that connections send without completing a message.
CHECK_S = 0.02

_CLOCK = SystemClock()

_BIND_ADVICE = {
    errno.EADDRINUSE: "is in use: stop the program that listens there, or choose another port (0: any free one)",
    errno.EADDRNOTAVAIL: "is not an address of this machine: expected one, such as 'tcp://127.0.0.1:5555'",
    errno.ENODEV: "has a host that is not an address of this machine: expected a numeric one, as 'tcp://127.0.0.1:5555'",
    errno.EACCES: "is not allowed for this user: choose a port above 1023, or a folder that you may write to",
    errno.ENOENT: "is in a folder that does not exist: create it first",
    errno.ENOTDIR: "is in something that is not a folder: expected the path of a file in a folder",
}


class ZeroMqServer:
    """A ROUTER: libzmq gives each connection its identity, since two peers that chose the same would clash."""

    def __init__(
        self, address: TcpAddress | IpcAddress, lock: Lock, limits: Limits, rejections: RejectionLog | None
    ) -> None:
        #: If they are not reported, they do not end a wait.
        self._reports_rejections, self._rejections = rejections is not None, rejections or RejectionLog()
        self._lock = lock
        #: Whether connections are let in by keys, which have names: a token is all processes' of a run.
        self._has_keys = isinstance(lock, ServerKeys)
        #: Whether nothing was waiting when it was last looked: an end that is known before is not reported yet.
        self._is_drained = False
        self._open(address, limits)

    def _open(self, address: TcpAddress | IpcAddress, limits: Limits) -> None:
        """Listen at an address; raises AddressError."""
        lock = self._lock
        self._socket = LimitedSocket(zmq.ROUTER, address, limits)
        # Without it, ROUTER silently drops what it cannot route or queue.
        self._socket.raw.set(zmq.ROUTER_MANDATORY, 1)
        try:
            secure_server(self._socket.raw, lock)
            # First, so that it is there when the first connection comes.
            self.authenticator = None if lock is None else Authenticator(self._socket.context, lock, self._rejections)
            self._bind(address)
        except BaseException:
            self._socket.close(0.0)
            raise
        self._connections = ConnectionTracker(self._socket.raw, self._rejections, _CLOCK, is_locked=lock is not None)
        self._socket.watch(self._connections.monitor)
        self._file = SocketFile(address.path) if isinstance(address, IpcAddress) else None
        self.address = self._socket.raw.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._quota = IngressQuota(limits)
        self._checked_at = _CLOCK.now()

    def _bind(self, address: TcpAddress | IpcAddress) -> None:
        try:
            with private_files():
                self._socket.raw.bind(str(address))
        except zmq.ZMQError as error:
            advice = _BIND_ADVICE.get(error.errno or 0, f"cannot be bound to ({error.strerror}): choose another")
            raise AddressError(f"address {str(address)!r} {advice}") from None

    def receive(self, timeout_s: float | None) -> Received | None:
        self._socket.check_open()
        now = _CLOCK.now()
        end = None if timeout_s is None else now + timeout_s
        self._is_drained = False
        while True:
            self._check_quota(now)
            self._socket.wait(self.wait_s(None if end is None else end - now))
            now = _CLOCK.now()
            # All messages are read before an end is reported, and once more after it.
            received = self._receive_message()
            if received is not None:
                return received
            self._connections.poll()
            if self._connections.has_ended() or (self._reports_rejections and self._rejections.has_due(now)):
                received = self._receive_message()
                self._is_drained = received is None
                return received
            # Otherwise a connection ended that never sent a message, which is of no concern.
            if end is not None and now >= end:
                return None

    def _receive_message(self) -> Received | None:
        """Return a message that has come, if any; a peer whose message has too many frames is cut off."""
        while (frames := self._socket.receive(extra=1)) is not None:
            peer = bytes(frames[0])
            if len(frames) - 1 > self._socket.limits.frames:
                self._cut_long(peer)
                continue
            self._connections.identify(peer, self._socket.first)
            self._quota.messages[peer] += 1
            return peer, frames[1:]
        return None

    def _cut_long(self, peer: bytes) -> None:
        """Cut off a peer whose message, just read, has too many frames."""
        self._rejections.record(f"disconnected a peer: its message has more than {self._socket.limits.frames} frames")
        self._connections.identify(peer, self._socket.first)
        self._connections.cut(peer)

    def wait_s(self, timeout_s: float | None) -> float | None:
        """Return a wait of so long, cut if clients are connected, to check their quotas."""
        if not self._connections.has_open():
            return timeout_s
        return CHECK_S if timeout_s is None else min(timeout_s, CHECK_S)

    def _check_quota(self, now: float) -> None:
        """Cut off peers that send more than their quota without completing a message."""
        if now < self._checked_at + CHECK_S:
            return
        self._checked_at = now
        self._connections.poll()
        for descriptor in self._quota.over_quota(self._connections.flows()):
            self._rejections.record(f"disconnected a peer: its message exceeds {self._quota.allowance} bytes")
            self._connections.cut_off(descriptor)

    def key_name(self, peer: bytes) -> str:
        user = self._connections.user(peer) if self._has_keys else ""
        # A process with the server's own key is on its machine, and not the only one.
        return "" if user == SERVER_NAME else user

    def cut(self, peer: bytes) -> None:
        self._socket.check_open()
        self._connections.cut(peer)

    def lost(self) -> list[bytes]:
        self._socket.check_open()
        lost = self._connections.take_ended() if self._is_drained else []
        for peer in lost:
            del self._quota.messages[peer]
        return lost

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller wait for this port among others."""
        self._socket.register(poller)
        poller.register(self._connections.monitor, zmq.POLLIN)

    def send(self, peer: bytes, frames: Frames) -> None:
        self._socket.limits.check(frames)
        self._socket.send([peer, *frames])

    def make_room(self, queue: int) -> None:
        # Never by setting SNDHWM on a socket that is bound. Later connections get the value from the time of the bind.
        # And libzmq 4.3.5 sends the new one to the other end of each connection, which its own thread may have deleted
        # after that ended: then it crashes the process (`pipe_t::send_hwms_to_peer`; within seconds, with connections
        # that come and go and this option in a loop).
        self._socket.check_open()
        limits = self._socket.limits
        if queue > limits.queue:
            address = parse(self.address)
            self.close()
            self._open(address, replace(limits, queue=queue))

    def close(self, linger_s: float = 0.0) -> None:
        if self._file is not None:
            # First, while no other process can have bound to it.
            self._file.remove()
            self._file = None
        self._connections.close()
        self._socket.close(linger_s)
