"""Times by key, of which the soonest is wanted again and again while each of them is put off all the time. Pure.

A heap in which an entry may be too early: putting a time off costs nothing until its entry is the first, so that both
are cheap for thousands of keys. To look through all of them at each message would be quadratic in the workers.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass
class TimerQueue(Generic[K]):
    """One time for each key, in seconds."""

    times: dict[K, float] = field(default_factory=dict)
    #: `(time, number, key)`; the number keeps keys from being compared. A key's valid entry is not later than its time.
    _heap: list[tuple[float, int, K]] = field(default_factory=list)
    #: The time and number of each key's valid entry: its others are to be forgotten.
    _valid: dict[K, tuple[float, int]] = field(default_factory=dict)
    _pushed: int = 0

    def set(self, key: K, at: float) -> None:
        """Set a key's time, whether it has one or not."""
        self.times[key] = at
        if key not in self._valid or at < self._valid[key][0]:
            self._push(key, at)

    def drop(self, key: K) -> None:
        """Forget a key, if it is there."""
        self.times.pop(key, None)
        self._valid.pop(key, None)

    def soonest(self) -> float | None:
        """Return the earliest time, None if there is no key."""
        while self._heap:
            at, number, key = self._heap[0]
            if self._valid.get(key) != (at, number):
                heappop(self._heap)
            elif at < self.times[key]:
                self._valid[key] = (self.times[key], number)
                heapreplace(self._heap, (self.times[key], number, key))
            else:
                return at
        return None

    def due(self, now: float) -> list[K]:
        """Return the keys whose time has come, soonest first; they keep it."""
        found: list[K] = []
        while (at := self.soonest()) is not None and at <= now:
            _, _, key = heappop(self._heap)
            del self._valid[key]
            found.append(key)
        for key in found:
            self._push(key, self.times[key])
        return found

    def _push(self, key: K, at: float) -> None:
        self._pushed += 1
        self._valid[key] = (at, self._pushed)
        heappush(self._heap, (at, self._pushed, key))
