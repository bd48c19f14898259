"""Connections of a ROUTER that have ended, or were never let in: ZeroMQ tells of a file descriptor, and each message
came over one."""

import os
from collections.abc import Iterator
from contextlib import suppress

import zmq
from zmq.utils.monitor import parse_monitor_message

from common.runtime.clock import Clock
from common.transport.limits.host_backoff import HostBackoff
from common.transport.limits.ingress_quota import Flow
from common.transport.limits.rejection_log import RejectionLog
from common.transport.zeromq.descriptors import other_end, received_bytes, shut

#: Peers of which is known that they were heard before: more than a server has at one time.
REMEMBERED = 8192

_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL

#: What became of a handshake, by ZeroMQ's code.
_REASONS: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it came without a key, or with one where none is asked for",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it takes this server for another one, with another key",
}

#: In the place of a host and port where the connection had ended before we could look.
_GONE = ("one that hung up at once", 0)


def _no_end(code: int) -> str:
    return f"its handshake came to no end ({os.strerror(code)}): has it the right key?"


class ConnectionTracker:
    """The ends of one socket's connections. To be closed before the socket: else its context would never end."""

    def __init__(self, socket: "zmq.Socket[bytes]", denials: RejectionLog, clock: Clock) -> None:
        self._socket, self._denials, self._clock = socket, denials, clock
        self._penalties = HostBackoff()
        self.monitor: zmq.Socket[bytes] = socket.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | _FAILURES
        )
        #: By descriptor, whose it is now.
        self._peers: dict[int, bytes] = {}
        #: By descriptor, the host and port at the other end of an open connection, as far as they are known.
        self._hosts: dict[int, tuple[str, int]] = {}
        #: The last peers that were heard: what waits of one that has ended may come when its descriptor is another's.
        self._heard: dict[bytes, None] = {}
        self._ended: list[bytes] = []
        #: The descriptors of connections that are ended as soon as they have begun.
        self._barred: set[int] = set()
        #: Why the handshake failed of the connection whose end is told next: both come at once, from one thread.
        self._failure = ""

    def heard(self, peer: bytes, frame: zmq.Frame) -> None:
        """Book by which descriptor a peer is heard, of whose message this is the first frame."""
        if peer in self._heard:
            return
        # First: whose descriptor it was before has ended.
        self.look()
        descriptor = frame.get(zmq.SRCFD)
        assert isinstance(descriptor, int)
        self._peers[descriptor] = peer
        self._heard[peer] = None
        if len(self._heard) > REMEMBERED:
            del self._heard[next(iter(self._heard))]

    def look(self) -> None:
        """Take in what ZeroMQ tells."""
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = parse_monitor_message(self.monitor.recv_multipart(zmq.DONTWAIT))
            match event["event"]:
                case zmq.EVENT_ACCEPTED:
                    self._begin(event["value"])
                case zmq.EVENT_DISCONNECTED:
                    self._end(event["value"])
                case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    code = event["value"]
                    self._failure = _REASONS.get(code, f"it broke the handshake (0x{code:x})")
                case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                    self._failure = self._failure or _no_end(event["value"])

    def _begin(self, descriptor: int) -> None:
        self._barred.discard(descriptor)
        try:
            host, _ = self._hosts[descriptor] = other_end(descriptor)
            if self._penalties.bars(host, self._clock.now()):
                self._barred.add(descriptor)
                shut(descriptor)
        except OSError:
            self._hosts[descriptor] = _GONE

    def _end(self, descriptor: int) -> None:
        host, _ = self._hosts.pop(descriptor, _GONE)
        peer = self._peers.pop(descriptor, None)
        if descriptor in self._barred:
            self._barred.remove(descriptor)
            self._failure = "it was cut off a moment ago"
        if peer is not None:
            self._ended.append(peer)
        elif self._failure:
            self._denials.note(f"refused {host or 'a local process'}: {self._failure}")
        self._failure = ""

    def has_open(self) -> bool:
        """Tell whether a connection is open."""
        return bool(self._hosts)

    def flows(self) -> Iterator[Flow]:
        """Return what came over each open connection of which the system counts it."""
        for descriptor in list(self._hosts):
            with suppress(OSError):
                count = received_bytes(descriptor)
                if count is not None:
                    yield Flow(descriptor=descriptor, peer=self._peers.get(descriptor), received_bytes=count)

    def cut(self, peer: bytes) -> None:
        """End the connection of a peer, which may dial again."""
        self.look()
        for descriptor, one in self._peers.items():
            if one == peer:
                self.cut_off(descriptor)
                return

    def cut_off(self, descriptor: int) -> None:
        """End a connection, unless its descriptor is another's by now, and bar its host for a while."""
        with suppress(OSError):
            place = other_end(descriptor)
            if place == self._hosts.get(descriptor):
                shut(descriptor)
                if place[0]:  # of local sockets nobody tells whose they are
                    self._penalties.book(place[0], self._clock.now())

    def has_any(self) -> bool:
        """Tell whether a peer has ended."""
        return bool(self._ended)

    def take(self) -> list[bytes]:
        """Return the peers that have ended, each once."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        if not self.monitor.closed:
            self._socket.disable_monitor()
            self.monitor.close(0)
