"""How often a peer is answered that asks how the run stands, or whether the server is there. Pure.

Anybody may ask, and an answer costs more than its question: of a long run a status takes a millisecond. Who asks more
often than a person can read is not answered each time, and asks again.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

#: Questions that are answered at once, and how many more each second.
AT_ONCE, PER_SECOND = 64.0, 20.0

#: Peers that are remembered: of more, the one that has not asked for longest is forgotten.
REMEMBERED = 1024


@dataclass
class Questions:
    """What each peer may still ask: a token bucket."""

    #: By peer, the number of questions that were left to it, and when.
    _left: dict[Hashable, tuple[float, float]] = field(default_factory=dict)

    def may_ask(self, peer: Hashable, now: float) -> bool:
        """Book a question; tell whether it is to be answered."""
        left, then = self._left.pop(peer, (AT_ONCE, now))
        left = min(AT_ONCE, left + PER_SECOND * (now - then))
        is_answered = left >= 1.0
        self._left[peer] = (left - 1.0 if is_answered else left, now)
        if len(self._left) > REMEMBERED:
            del self._left[next(iter(self._left))]
        return is_answered
