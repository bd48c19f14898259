"""How often a peer gets the status of the run. Pure: the time is an argument.

Anybody may ask, and for a long run the answer takes a millisecond. A peer that asks without end is answered so many
times a second: what it asks in between is one request, whose answer comes later.
"""

from dataclasses import dataclass, field

#: Requests that are answered at once, and how many more each second: as often as `train` asks at most.
AT_ONCE, PER_SECOND = 32.0, 50.0

#: Peers that are remembered: of more, the one that has not asked for longest is forgotten, and its request with it.
REMEMBERED = 1024


@dataclass
class StatusRateLimit:
    """What each peer may still ask: a token bucket, and an answer that is due later."""

    #: By peer, the number of requests that were left to it, and when.
    _left: dict[bytes, tuple[float, float]] = field(default_factory=dict)
    #: By peer, from when on it may be answered.
    _postponed: dict[bytes, float] = field(default_factory=dict)

    def ask(self, peer: bytes, now: float) -> bool:
        """Record a request; tell whether to answer it now. Otherwise `due` returns its peer later."""
        if peer in self._postponed:
            return False
        left = self._take(peer, now)
        if left < 0.0:
            self._postponed[peer] = now - left / PER_SECOND
        return left >= 0.0

    def _take(self, peer: bytes, now: float) -> float:
        """Take a request off what is left to a peer; return what is left then, negative if none was."""
        left, then = self._left.pop(peer, (AT_ONCE, now))
        left = min(AT_ONCE, left + PER_SECOND * (now - then)) - 1.0
        self._left[peer] = (left, now)
        if len(self._left) > REMEMBERED:
            forgotten = next(iter(self._left))
            del self._left[forgotten]
            self._postponed.pop(forgotten, None)
        return left

    def deadline(self) -> float | None:
        """Return when the next postponed answer is due."""
        return min(self._postponed.values(), default=None)

    def due(self, now: float) -> list[bytes]:
        """Return the peers that are to be answered now, and forget their requests."""
        peers = [peer for peer, at in self._postponed.items() if at <= now]
        for peer in peers:
            del self._postponed[peer]
        return peers
