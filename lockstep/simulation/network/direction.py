"""One way of a simulated wire: what is on its way, in order. Knows neither who sends nor who hears."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Message = list[memoryview]


@dataclass
class Direction:
    """One way of a wire: what is on its way, in order, with the time of its arrival."""

    flying: deque[tuple[float, Message]] = field(default_factory=deque)
    last: float = 0.0
    #: Nothing comes through.
    is_silent: bool = False

    def put(self, time: float, message: Message) -> None:
        # Not before what was sent earlier, and nothing at all while the way is cut.
        self.last = max(self.last, time)
        self.flying.append((math.inf if self.is_silent else self.last, message))

    def next_arrival(self) -> float:
        return self.flying[0][0] if self.flying else math.inf

    def silence(self, now: float) -> None:
        """Hold back what has not arrived."""
        self.is_silent = True
        self.flying = deque((at if at <= now else math.inf, message) for at, message in self.flying)

    def heal(self, times: Callable[[], float]) -> None:
        """Let come, one after the other, what was held back."""
        self.is_silent, self.last = False, 0.0
        held, self.flying = self.flying, deque()
        for at, message in held:
            self.last = at if at < math.inf else max(self.last, times())
            self.flying.append((self.last, message))

    def drop(self, now: float) -> None:
        """Lose what has not arrived."""
        self.flying = deque((at, message) for at, message in self.flying if at <= now)
        self.last = now
