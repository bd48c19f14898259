"""Connections that were not let in: all are counted, some are told. Knows no socket and no clock."""

import math
from collections import deque
from dataclasses import dataclass, field
from threading import Lock

#: Lines of a log that strangers can cause in so many seconds.
LINES, WINDOW_S = 5, 10.0


@dataclass
class RejectionLog:
    """What an authenticator notes in its thread, and a server tells in its own."""

    #: All that ever were.
    count: int = 0
    #: Of those not told yet, the first ones.
    _news: deque[str] = field(default_factory=deque)
    #: Of all, those that no line has told of yet.
    untold: int = 0
    _began_s: float = -math.inf
    _lines: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def note(self, text: str) -> None:
        """Count a connection that was not let in, and why."""
        with self._lock:
            self.count += 1
            self.untold += 1
            if len(self._news) < LINES:
                self._news.append(text)

    def has_news(self, now: float) -> bool:
        """Tell whether there is a line to be told at `now` seconds."""
        return self.untold > 0 and (self._lines < LINES or now >= self._began_s + WINDOW_S)

    def told(self, now: float) -> list[str]:
        """Return the lines that are due at `now` seconds: a few at once, and of the rest how many they were."""
        with self._lock:
            if now >= self._began_s + WINDOW_S:
                self._began_s, self._lines = now, 0
            lines = [self._news.popleft() for _ in range(min(LINES - self._lines, len(self._news)))]
            self._lines += len(lines)
            self.untold -= len(lines)
            if lines and self.untold and not self._news:
                lines.append(f"{self.untold} more connections were refused")
                self.untold = 0
            return lines
