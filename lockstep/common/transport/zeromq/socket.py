"""One ZeroMQ socket in a context of its own, with limits on both sides; it never blocks longer than it is asked to."""

import math
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import zmq

from lockstep.common.errors import ProtocolError
from lockstep.common.transport.address import Address, TcpAddress
from lockstep.common.transport.port import Frame, Limits, PeerGone, PeerSlow

#: How TCP detects within half a minute that a host has vanished: seconds of silence until it asks, seconds between two
#: questions, how many may stay unanswered, and milliseconds for which sent bytes may stay unacknowledged. Not by
#: ZeroMQ's heartbeats: they abort the whole process (`Assertion failed: !_io_error`, libzmq issue 4841) if a peer
#: disconnects whose messages have filled the queue, and consider one gone that waits for a full queue. Hanging peers
#: are found by their leases.
_IDLE_S, _BETWEEN_S, _UNANSWERED, _UNACKNOWLEDGED_MS = 10, 5, 4, 30_000

#: An event of ZeroMQ's monitor, and what it is about: a descriptor, or why a handshake failed (zmq_socket_monitor(3)).
_MONITORED = struct.Struct("=Hi")

#: As plain numbers: an operation of an enum takes a microsecond.
_EVENTS, _IN, _DONTWAIT, _SNDMORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.DONTWAIT), int(zmq.SNDMORE)

#: A signal that comes just before a poll does not end it: its handler runs after this time at the latest.
_POLL_S = 0.5


class LimitedSocket:
    """A ROUTER or DEALER."""

    def __init__(self, kind: int, address: Address, limits: Limits) -> None:
        self.limits = limits
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.raw = self.context.socket(kind)
        self._poller = zmq.Poller()
        self._poller.register(self.raw, zmq.POLLIN)
        #: The first frame of the last message.
        self.first = zmq.Frame()
        for option, value in (
            # The default waits for ever when the socket is closed.
            (zmq.LINGER, 0),
            # These count messages. Frames are short, so they bound bytes too.
            (zmq.SNDHWM, limits.queue),
            (zmq.RCVHWM, limits.backlog),
            (zmq.MAXMSGSIZE, limits.frame_bytes),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, _IDLE_S),
            (zmq.TCP_KEEPALIVE_INTVL, _BETWEEN_S),
            (zmq.TCP_KEEPALIVE_CNT, _UNANSWERED),
            (zmq.TCP_MAXRT, _UNACKNOWLEDGED_MS),
            (zmq.IPV6, int(isinstance(address, TcpAddress) and address.is_ipv6)),
        ):
            self.raw.set(option, value)

    def watch(self, other: zmq.Socket[bytes]) -> None:
        """Let what comes on another socket end the wait for a message."""
        self._poller.register(other, zmq.POLLIN)

    def receive(self, extra: int, timeout_s: float | None = 0.0) -> list[memoryview] | None:
        """Return the frames of a message, None if none comes in so many seconds, None for ever, or another event does.

        Of a message that is too long, it returns one frame more than the limit; `extra` frames are not counted.
        """
        frames: list[memoryview] = []
        # To ask is quicker than to find out by an exception, or by waiting.
        has_more = has_message(self.raw) or (timeout_s != 0.0 and self.raw in wait_for(self._poller, timeout_s))
        while has_more:
            frame = self.raw.recv(_DONTWAIT, copy=False)
            has_more = frame.more
            if not frames:
                self.first = frame
            if len(frames) <= self.limits.frames + extra:
                # The view keeps the frame, and with it libzmq's own buffer: nothing is copied.
                frames.append(memoryview(frame.buffer).toreadonly())
        return frames or None

    def send(self, frames: Sequence[Frame]) -> None:
        self.check_open()
        try:
            # A copy, since libzmq sends later and the caller overwrites its buffer now; not of frames of libzmq itself,
            # which it counts the uses of.
            for frame in frames[:-1]:
                self.raw.send(_owned(frame), _DONTWAIT | _SNDMORE)
            self.raw.send(_owned(frames[-1]), _DONTWAIT)
        except zmq.Again:
            raise PeerSlow(f"too many messages wait for this peer: expected at most {self.limits.queue}") from None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise PeerGone("no connection to this peer: expected one that has sent a message and is there") from None
        except BaseException:
            # A signal handler raised. Half a message would swallow the next one: end it, and its peer refuses it.
            with suppress(zmq.ZMQError):
                self.raw.send(b"", zmq.DONTWAIT)
            raise

    def close(self, linger_s: float) -> None:
        if self.raw.closed:
            return
        self._poller.unregister(self.raw)
        self.raw.close(milliseconds(linger_s))
        # Waits until the socket has lingered, so that a process may exit after this.
        self.context.term()

    def check_open(self) -> None:
        if self.raw.closed:
            raise ProtocolError("this port is closed: expected no more sends and receives after close()")


def _owned(frame: Frame) -> Frame | zmq.Frame:
    """Return the frame of libzmq that a view is of, or the frame itself."""
    owner = frame.obj if isinstance(frame, memoryview) else None
    return owner if isinstance(owner, zmq.Frame) else frame


def has_message(socket: "zmq.Socket[bytes]") -> bool:
    """Tell whether a message has come: takes two system calls."""
    return bool(int(socket.getsockopt(_EVENTS)) & _IN)


def monitored_event(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """Return the next event of a monitor that has one, and its value.

    `zmq.utils.monitor` could read it too, but imports asyncio, which nothing here needs: a tenth of a worker's start.
    """
    event, value = _MONITORED.unpack(monitor.recv_multipart(zmq.DONTWAIT)[0])
    return event, value


def milliseconds(seconds: float | None) -> int | None:
    """Return whole milliseconds, rounded up so that a deadline has passed when the wait is over."""
    return None if seconds is None else min(math.ceil(max(seconds, 0.0) * 1000.0), 2**31 - 1)


def wait_for(poller: zmq.Poller, timeout_s: float | None) -> list[Any]:
    """Wait until something has come, or for so many seconds, None for ever; return the sockets on which it has."""
    left_s = math.inf if timeout_s is None else timeout_s
    while not (ready := poller.poll(milliseconds(min(left_s, _POLL_S)))):
        left_s -= _POLL_S
        if left_s <= 0.0:
            break
    return [socket for socket, _ in ready]
