"""Refused connections: all are counted, some are reported. Knows no socket and no clock."""

import math
from collections import deque
from dataclasses import dataclass, field
from threading import Lock

#: Most lines that strangers can cause in so many seconds.
LINES, WINDOW_S = 5, 10.0


@dataclass
class RejectionLog:
    """What an authenticator records in its thread, and a server reports in its own."""

    #: All refused connections so far.
    count: int = 0
    #: The first ones that were not reported yet.
    _pending: deque[str] = field(default_factory=deque)
    #: How many were not reported yet.
    unreported: int = 0
    _began_s: float = -math.inf
    _lines: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def record(self, text: str) -> None:
        """Record a refused connection, and why."""
        with self._lock:
            self.count += 1
            self.unreported += 1
            if len(self._pending) < LINES:
                self._pending.append(text)

    def has_due(self, now: float) -> bool:
        """Tell whether a line is due at `now` seconds."""
        return self.unreported > 0 and (self._lines < LINES or now >= self._began_s + WINDOW_S)

    def due(self, now: float) -> list[str]:
        """Return the lines that are due at `now` seconds: a few at once, then the number of the others."""
        with self._lock:
            if now >= self._began_s + WINDOW_S:
                self._began_s, self._lines = now, 0
            lines = [self._pending.popleft() for _ in range(min(LINES - self._lines, len(self._pending)))]
            self._lines += len(lines)
            self.unreported -= len(lines)
            if lines and self.unreported and not self._pending:
                lines.append(f"{self.unreported} more connections were refused")
                self.unreported = 0
            return lines
