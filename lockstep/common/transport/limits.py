"""Limits of the costs of strangers to a server: bytes of messages that never end, connections, and lines of its log.

Knows no socket and no clock: the time is an argument.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock

import msgspec

from lockstep.common.transport.port import Limits

#: Bytes that the system itself may hold for a connection if it was tuned for fast networks.
SYSTEM_BYTES = 64 * 2**20


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes received over one connection so far."""

    descriptor: int
    #: The peer that has sent a message over it, if any.
    peer: bytes | None
    received_bytes: int


@dataclass
class IngressQuota:
    """The bytes that each connection has sent since its last complete message.

    ZeroMQ limits the bytes of a frame and the number of waiting messages, but not the frames of a message: it would
    keep all frames of one that never ends.
    """

    limits: Limits
    #: Complete messages of each peer.
    messages: Counter[bytes] = field(default_factory=Counter)
    #: By descriptor, the number of messages when it was last found to have changed, and the bytes received by then.
    _since: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def allowance(self) -> int:
        """Bytes of one connection that may wait: a backlog of the largest messages."""
        return self.limits.backlog * self.limits.frames * self.limits.frame_bytes + SYSTEM_BYTES

    def over_quota(self, flows: Iterable[Flow]) -> list[int]:
        """Return the descriptors of the open connections that are over their quota; record the others."""
        since, found = self._since, list[int]()
        self._since = {}
        for flow in flows:
            messages = 0 if flow.peer is None else self.messages[flow.peer]
            # A new connection has sent all its bytes since it was opened.
            known = since.get(flow.descriptor, (0, 0))
            self._since[flow.descriptor] = known if known[0] == messages else (messages, flow.received_bytes)
            if known[0] == messages and flow.received_bytes - known[1] > self.allowance:
                found.append(flow.descriptor)
        return found


#: Seconds of the first block of a host; each further one is twice as long, up to the most.
FIRST_S, MOST_S = 1.0, 8.0

#: Seconds after the end of a block without another until it is forgotten.
FORGOTTEN_S = 60.0

#: Most hosts that are remembered; the one that was cut off longest ago is forgotten first.
MOST_REMEMBERED = 1024


@dataclass
class HostBackoff:
    """The times for which hosts are blocked after one of their connections was cut off; connections that are open stay.

    Cutting off a client that sends without measure takes time too, and it can dial again at once: without a block, the
    others would run at half their speed next to a client that does nothing else.
    """

    #: By host, the seconds of its last block, and when that ends.
    _blocks: dict[str, tuple[float, float]] = field(default_factory=dict)

    def record(self, host: str, now: float) -> None:
        """Record that a connection of a host was cut off. If the host is blocked now, this one was opened before."""
        seconds, until = self._blocks.pop(host, (0.0, -math.inf))
        if now >= until:
            seconds = FIRST_S if now >= until + FORGOTTEN_S else min(2.0 * seconds, MOST_S)
            until = now + seconds
        self._blocks[host] = (seconds, until)
        if len(self._blocks) > MOST_REMEMBERED:
            del self._blocks[next(iter(self._blocks))]

    def is_blocked(self, host: str, now: float) -> bool:
        """Tell whether a host is blocked."""
        return now < self._blocks.get(host, (0.0, -math.inf))[1]


#: Most different lines that strangers can cause in so many seconds.
LINES, WINDOW_S = 5, 10.0


@dataclass
class RejectionLog:
    """Refused connections: all are counted, and some are reported, those of one reason together.

    An authenticator records them in its thread, and a server reports them in its own.
    """

    #: All connections so far that the server refused.
    count: int = 0
    #: The first reasons of those that were not reported yet, with their numbers, and the number of all others.
    _pending: Counter[str] = field(default_factory=Counter)
    _others: int = 0
    #: The reasons that were reported since the window began.
    _reported: set[str] = field(default_factory=set)
    _began_s: float = -math.inf
    _lock: Lock = field(default_factory=Lock, repr=False)

    def record(self, text: str, *, is_refused: bool = True) -> None:
        """Record a connection that the server refused, or that the other end broke off, and why."""
        with self._lock:
            self.count += is_refused
            if text in self._pending or len(self._pending) < LINES:
                self._pending[text] += 1
            else:
                self._others += 1

    def has_any(self) -> bool:
        """Tell whether a refusal was not reported yet."""
        return bool(self._pending)

    def has_due(self, now: float) -> bool:
        """Tell whether a line is due at `now` seconds."""
        with self._lock:
            return bool(self._pending) and (now >= self._began_s + WINDOW_S or bool(self._new()))

    def due(self, now: float) -> list[str]:
        """Return the lines that are due at `now` seconds: each new reason at once, and at most once in a window."""
        with self._lock:
            if now >= self._began_s + WINDOW_S:
                self._began_s, self._reported = now, set()
            counts = {text: self._pending.pop(text) for text in self._new()}
            self._reported.update(counts)
            lines = [text if count == 1 else f"{text} ({count:,} times)" for text, count in counts.items()]
            if lines and self._others and not self._pending:
                lines.append(f"{self._others} more connections were refused")
                self._others = 0
            return lines

    def _new(self) -> list[str]:
        new = [text for text in self._pending if text not in self._reported]
        return new[: LINES - len(self._reported)]
