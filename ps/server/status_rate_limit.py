"""How often a peer is told how the run stands. Pure: the time is an argument.

Anybody may ask, and of a long run the answer takes a millisecond. Who asks without end is answered so many times a
second: what is asked in between is one question, whose answer comes later.
"""

from dataclasses import dataclass, field

#: Questions that are answered at once, and how many more each second: as often as `train` asks at most.
AT_ONCE, PER_SECOND = 32.0, 50.0

#: Peers that are remembered: of more, the one that has not asked for longest is forgotten, and its question with it.
REMEMBERED = 1024


@dataclass
class StatusRateLimit:
    """What each peer may still ask: a token bucket, and an answer that is owed."""

    #: By peer, the number of questions that were left to it, and when.
    _left: dict[bytes, tuple[float, float]] = field(default_factory=dict)
    #: By peer, from when on it may be answered.
    _owed: dict[bytes, float] = field(default_factory=dict)

    def ask(self, peer: bytes, now: float) -> bool:
        """Book a question; tell whether it is to be answered now. Otherwise `due` tells of it."""
        if peer in self._owed:
            return False
        left = self._take(peer, now)
        if left < 0.0:
            self._owed[peer] = now - left / PER_SECOND
        return left >= 0.0

    def _take(self, peer: bytes, now: float) -> float:
        """Take a question off what is left to a peer; return what is left then, negative where none was."""
        left, then = self._left.pop(peer, (AT_ONCE, now))
        left = min(AT_ONCE, left + PER_SECOND * (now - then)) - 1.0
        self._left[peer] = (left, now)
        if len(self._left) > REMEMBERED:
            forgotten = next(iter(self._left))
            del self._left[forgotten]
            self._owed.pop(forgotten, None)
        return left

    def deadline(self) -> float | None:
        """Return when the next answer is due that is owed."""
        return min(self._owed.values(), default=None)

    def due(self, now: float) -> list[bytes]:
        """Return the peers that are to be answered now, and forget that they are owed it."""
        peers = [peer for peer, at in self._owed.items() if at <= now]
        for peer in peers:
            del self._owed[peer]
        return peers
