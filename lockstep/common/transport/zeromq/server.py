"""The server's port over ZeroMQ: a ROUTER, and the owners and ends of its connections. Sees frames and never a message.

ZeroMQ reports connections by file descriptor, and every message came over one.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import zmq
from msgspec.structs import replace

from lockstep.common.errors import AddressError
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.transport.address import Address, IpcAddress, SocketFile, parse, private_files
from lockstep.common.transport.auth.credentials import SERVER_NAME, Lock, ServerKeys
from lockstep.common.transport.auth.curve import secure_server
from lockstep.common.transport.limits import Flow, HostBackoff, IngressQuota, RejectionLog
from lockstep.common.transport.port import Frame, Frames, Limits
from lockstep.common.transport.zeromq.authenticator import Authenticator
from lockstep.common.transport.zeromq.socket import LimitedSocket, has_message, monitored_event

T = TypeVar("T")

#: The place at which Linux keeps the bytes received in its `struct tcp_info`, and how much of that is asked for.
_BYTES_RECEIVED = struct.Struct("=128xQ")

#: Peers that are remembered after their first message: more than a server has at one time.
MOST_REMEMBERED = 8192

_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL

#: In place of host and port, if a connection ended before it could be examined.
_GONE = ("a host that disconnected at once", 0)


class ConnectionTracker:
    """The connections of one socket. Close it before the socket, or its context never ends."""

    def __init__(self, socket: "zmq.Socket[bytes]", rejections: RejectionLog, clock: Clock, *, is_locked: bool) -> None:
        mismatch = "it has no key" if is_locked else "it has a key, although this server has none"
        #: Why a handshake failed, by ZeroMQ's code.
        self._reasons: dict[int, str] = {
            zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it expects a server with another key",
            zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: mismatch,
        }
        self._is_locked = is_locked
        self._socket, self._rejections, self._clock = socket, rejections, clock
        self._backoff = HostBackoff()
        self.monitor: zmq.Socket[bytes] = socket.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | _FAILURES
        )
        #: By descriptor, the peer that it belongs to now.
        self._peers: dict[int, bytes] = {}
        #: By descriptor, the remote host and port of an open connection, as far as they are known.
        self._hosts: dict[int, tuple[str, int]] = {}
        #: The last peers of which a message came, with the names of their keys: those of an ended one may come when its
        #: descriptor is another's.
        self._known: dict[bytes, str] = {}
        self._ended: list[bytes] = []
        #: The descriptors of connections that are ended as soon as they begin.
        self._blocked: set[int] = set()
        #: Why the handshake failed of the connection whose end is the next event: both come at once, from one thread.
        self._failure = ""
        #: Whether it is the client that broke it off: one that tries several keys, or the port alone.
        self._is_broken_off = False

    def identify(self, peer: bytes, frame: zmq.Frame) -> None:
        """Record the descriptor of a peer, given the first frame of its message."""
        if peer in self._known:
            return
        # First, since the previous owner of the descriptor has ended.
        self.poll()
        descriptor = frame.get(zmq.SRCFD)
        assert isinstance(descriptor, int)
        self._peers[descriptor] = peer
        # Without a lock no connection has a name, and none is asked for.
        self._known[peer] = _user_of(frame) if self._is_locked else ""
        if len(self._known) > MOST_REMEMBERED:
            del self._known[next(iter(self._known))]

    def user(self, peer: bytes) -> str:
        """Return the name under which the authenticator let a peer in; empty if it was not asked."""
        return self._known.get(peer, "")

    def poll(self) -> None:
        """Read the events of ZeroMQ."""
        while has_message(self.monitor):
            event, value = monitored_event(self.monitor)
            match event:
                case zmq.EVENT_ACCEPTED:
                    self._begin(value)
                case zmq.EVENT_DISCONNECTED:
                    self._end(value)
                case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    self._failure = self._reasons.get(value, f"it broke the handshake (0x{value:x})")
                    self._is_broken_off = value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
                case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                    why = f"({os.strerror(value)})"
                    text = f"its handshake did not complete {why}: check its key, unless it only tried the port"
                    # Of one that stalls, this server breaks it off.
                    self._is_broken_off = self._is_broken_off or not (self._failure or value == errno.EAGAIN)
                    self._failure = self._failure or text

    def _begin(self, descriptor: int) -> None:
        self._blocked.discard(descriptor)
        try:
            host, _ = self._hosts[descriptor] = _remote_address(descriptor)
            if self._backoff.is_blocked(host, self._clock.now()):
                self._blocked.add(descriptor)
                _shut_down(descriptor)
        except OSError:
            self._hosts[descriptor] = _GONE

    def _end(self, descriptor: int) -> None:
        host, _ = self._hosts.pop(descriptor, _GONE)
        peer = self._peers.pop(descriptor, None)
        if descriptor in self._blocked:
            self._blocked.remove(descriptor)
            self._failure, self._is_broken_off = "it was disconnected a moment ago", False
        if peer is not None:
            self._ended.append(peer)
        elif self._failure:
            text = f"refused {host or 'a local process'}: {self._failure}"
            self._rejections.record(text, is_refused=not self._is_broken_off)
        self._failure, self._is_broken_off = "", False

    def has_open(self) -> bool:
        """Tell whether a connection is open."""
        return bool(self._hosts)

    def flows(self) -> Iterator[Flow]:
        """Yield the bytes received over each open connection for which the system counts them."""
        for descriptor in list(self._hosts):
            with suppress(OSError):
                count = _received_bytes(descriptor)
                if count is not None:
                    yield Flow(descriptor=descriptor, peer=self._peers.get(descriptor), received_bytes=count)

    def cut(self, peer: bytes) -> None:
        """End the connection of a peer, which may dial again."""
        self.poll()
        for descriptor, owner in self._peers.items():
            if owner == peer:
                self.cut_off(descriptor)
                return

    def cut_off(self, descriptor: int) -> None:
        """End a connection, unless its descriptor is another's by now, and block its host for a while."""
        with suppress(OSError):
            address = _remote_address(descriptor)
            if address == self._hosts.get(descriptor):
                _shut_down(descriptor)
                if address[0]:  # local sockets have no address
                    self._backoff.record(address[0], self._clock.now())

    def has_ended(self) -> bool:
        """Tell whether a peer has ended."""
        return bool(self._ended)

    def take_ended(self) -> list[bytes]:
        """Return the peers that have ended, each once."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        if not self.monitor.closed:
            self._socket.disable_monitor()
            self.monitor.close(0)


def _on_socket(descriptor: int, do: Callable[[socket.socket], T]) -> T:
    """Return what `do` returns of a connection of which we have only the number."""
    connection = socket.socket(fileno=descriptor)
    try:
        return do(connection)
    finally:
        # Not ours to close.
        connection.detach()


def _remote_address(descriptor: int) -> tuple[str, int]:
    """Return the remote host and port, ("", 0) for a local socket; `OSError` if there is no connection."""
    name = _on_socket(descriptor, lambda connection: connection.getpeername())
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("", 0)


def _shut_down(descriptor: int) -> None:
    """Shut a connection down both ways: ZeroMQ, which opened it, then closes it. `OSError` if it is gone."""
    _on_socket(descriptor, lambda connection: connection.shutdown(socket.SHUT_RDWR))


def _received_bytes(descriptor: int) -> int | None:
    """Return the bytes that came over a connection by tcp, None if the system does not count them.

    `OSError` if there is no such connection.
    """
    if sys.platform != "linux":
        return None
    # All that is asked for fails on a local socket; to find out its kind first would take three more system calls.
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    finally:
        connection.detach()
    return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == _BYTES_RECEIVED.size else None


def _user_of(frame: zmq.Frame) -> str:
    """Return the name that the authenticator gave to the connection over which a frame came."""
    with suppress(zmq.ZMQError):
        return str(frame.get("User-Id"))
    return ""


#: A message with its peer.
Received = tuple[bytes, list[memoryview]]

#: Seconds between two checks of the bytes that connections send without completing a message, in which one may exceed
#: its quota by what it sends: 60 MB on a link of 10 Gbit/s. A check takes 10 us for each connection.
CHECK_S = 0.05

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

    def __init__(self, address: Address, lock: Lock, limits: Limits, rejections: RejectionLog | None) -> None:
        #: If they are not reported, they do not end a wait.
        self._reports_rejections, self._rejections = rejections is not None, rejections or RejectionLog()
        self._lock = lock
        #: Whether connections are let in by keys, which have names: a token is all processes' of a run.
        self._has_keys = isinstance(lock, ServerKeys)
        #: Whether nothing was waiting when it was last looked: an end that is known before is not reported yet.
        self._is_drained = False
        self._open(address, limits)

    def _open(self, address: Address, limits: Limits) -> None:
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

    def _bind(self, address: Address) -> None:
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
            # All messages are read before an end is reported, and once more after it.
            left_s = None if end is None else end - now
            received = self._receive_message(0.0 if timeout_s == 0.0 else self.wait_s(left_s))
            if received is not None:
                return received
            now = _CLOCK.now()
            self._connections.poll()
            if self._connections.has_ended() or (self._reports_rejections and self._rejections.has_due(now)):
                received = self._receive_message()
                self._is_drained = received is None
                return received
            # Otherwise a connection ended that never sent a message, which is of no concern.
            if end is not None and now >= end:
                return None

    def _receive_message(self, timeout_s: float | None = 0.0) -> Received | None:
        """Return a message, if one comes in so many seconds; a peer whose message has too many frames is cut off."""
        while (frames := self._socket.receive(1, timeout_s)) is not None:
            peer = bytes(frames[0])
            if len(frames) - 1 > self._socket.limits.frames:
                self._cut_long(peer)
                timeout_s = 0.0
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

    def waited_for(self) -> "list[zmq.Socket[bytes]]":
        """Return what to wait for, if this port is waited for among others."""
        self._socket.check_open()
        return [self._socket.raw, self._connections.monitor]

    def send(self, peer: bytes, frames: Frames) -> None:
        self._socket.limits.check(frames)
        self._socket.send([peer, *frames])

    def shared(self, frame: Frame) -> Frame:
        return zmq.Frame(frame, copy=True).buffer

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
