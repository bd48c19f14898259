"""The connections of a ROUTER: whose they are, which have ended, and which were refused.

ZeroMQ reports them by file descriptor, and every message came over one.
"""

import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import zmq

from lockstep.common.runtime.clock import Clock
from lockstep.common.transport.limits import Flow, HostBackoff, RejectionLog
from lockstep.common.transport.zeromq.socket import monitored_event

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
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event, value = monitored_event(self.monitor)
            match event:
                case zmq.EVENT_ACCEPTED:
                    self._begin(value)
                case zmq.EVENT_DISCONNECTED:
                    self._end(value)
                case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    self._failure = self._reasons.get(value, f"it broke the handshake (0x{value:x})")
                case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                    why = f"({os.strerror(value)})"
                    text = f"its handshake did not complete {why}: check its key, unless it only tried the port"
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
            self._failure = "it was disconnected a moment ago"
        if peer is not None:
            self._ended.append(peer)
        elif self._failure:
            self._rejections.record(f"refused {host or 'a local process'}: {self._failure}")
        self._failure = ""

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
    """Shut a connection down both ways: ZeroMQ, which opened it, then closes it. `OSError` if there is none."""
    _on_socket(descriptor, lambda connection: connection.shutdown(socket.SHUT_RDWR))


def _received_bytes(descriptor: int) -> int | None:
    """Return the bytes that came over a connection by tcp, None if the system does not count them.

    `OSError` if there is no connection.
    """
    if sys.platform != "linux":
        return None

    def ask(connection: socket.socket) -> int | None:
        if connection.family == socket.AF_UNIX:
            return None
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == _BYTES_RECEIVED.size else None

    return _on_socket(descriptor, ask)


def _user_of(frame: zmq.Frame) -> str:
    """Return the name that the authenticator gave to the connection over which a frame came."""
    with suppress(zmq.ZMQError):
        return str(frame.get("User-Id"))
    return ""
