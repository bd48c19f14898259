"""Time in which the server did not look is no worker's fault: it was stopped, or busy with a long update. Pure."""

from dataclasses import dataclass

#: Seconds within which the server looks at least once while anybody could be late.
LOOK_S = 1.0

#: A longer time between two looks is one in which it did not run, or was busy. What workers sent meanwhile waits.
MISSED_S = 2.0 * LOOK_S


@dataclass
class StallDetector:
    """When the server last looked."""

    last: float | None = None

    def look(self, now: float) -> float:
        """Book a look; return the seconds before it that are to be held against nobody."""
        gap = 0.0 if self.last is None else now - self.last
        self.last = now
        return gap if gap > MISSED_S else 0.0

    def due(self) -> float | None:
        """Return when to look next, None before the first time."""
        return None if self.last is None else self.last + LOOK_S
