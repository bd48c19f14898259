"""Who makes an update: the server alone, it and workers, or workers alone. Whichever is fastest, by measuring. Pure.

The choice never changes the bits. None is fastest everywhere: for a small vector the messages take longer than the
arithmetic; and with as many workers as cores, each kept to its own, the server takes the core of one of them.
"""

import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

#: Updates by which a way is judged: the last ones that were made so.
SAMPLES = 7

#: Updates after which slower ways are tried again, since other processes and other workers come and go.
PERIOD = 1000


class UpdateMode(Enum):
    """Who makes an update."""

    ALONE = "the server alone"
    TOGETHER = "the server and workers"
    WORKERS = "workers alone"


def _recent() -> deque[float]:
    return deque(maxlen=SAMPLES)


@dataclass
class ModeChoice:
    """How the next update is made, from the durations of those before."""

    #: If False, all possible ways take turns.
    is_measured: bool = True
    _updates: int = 0
    _last: UpdateMode | None = None
    #: The seconds of the last updates of each kind, and their medians once there are enough.
    _seconds: dict[UpdateMode, deque[float]] = field(default_factory=lambda: defaultdict(_recent))
    _medians: dict[UpdateMode, float] = field(default_factory=dict)

    def choose(self, possible: Sequence[UpdateMode]) -> UpdateMode:
        """Return how the next update is made, of at least one way that is possible."""
        if len(possible) == 1:
            return possible[0]
        if not self.is_measured:
            return possible[self._updates % len(possible)]
        for mode in possible:
            if mode not in self._medians:
                return mode
        # One update more than counts, as the first one after a change is not measured.
        trial, ranked = self._updates % PERIOD // (SAMPLES + 1), sorted(possible, key=self._medians.__getitem__)
        return ranked[trial + 1] if trial + 1 < len(ranked) else ranked[0]

    def record(self, mode: UpdateMode, seconds: float) -> None:
        """Record how long an update took; the first one after a change finds its memory out of the caches."""
        self._updates += 1
        if mode is self._last:
            recent = self._seconds[mode]
            recent.append(seconds)
            if len(recent) == SAMPLES:
                self._medians[mode] = statistics.median(recent)
        self._last = mode
