"""Whether and when a process that died is started again. Pure: the time is an argument."""

from dataclasses import dataclass

from common.runtime.backoff import Backoff

#: Seconds that a process has to live for its earlier deaths not to count any more.
STEADY_S = 60.0

#: Seconds before the first new start at most, and before any.
FIRST_S, MOST_S = 0.5, 10.0

#: The exit code of who was refused, or cannot do what was asked of it: it would come to the same again.
USAGE = 2


@dataclass
class Restarts:
    """The deaths of one process and of those that took its place."""

    #: How many deaths in a row are put up with.
    most: int
    #: Tells it from the others, so that not all are started in the same moment.
    seed: str
    deaths: int = 0

    def delay_s(self, lived_s: float, code: int) -> float | None:
        """Book a death; return the seconds until a new start, None where that is hopeless.

        `lived_s` are the seconds that it lived, `code` is its exit code, negative for a signal.
        """
        if lived_s >= STEADY_S:
            self.deaths = 0
        if code == USAGE or self.deaths >= self.most:
            return None
        self.deaths += 1
        return Backoff(first_s=FIRST_S, most_s=MOST_S, seed=self.seed).delay_s(self.deaths)
