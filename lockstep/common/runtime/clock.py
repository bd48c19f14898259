"""The only reader of the clock: everything else is given the time, or one of these."""

import time
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic seconds."""

    def now(self) -> float:
        """Return seconds since an arbitrary start; never runs backwards."""
        ...


@dataclass(frozen=True)
class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.perf_counter()


@dataclass
class ManualClock:
    """Time that moves only by `advance`: for simulations and tests."""

    #: Seconds; only ever grows.
    seconds: float = field(default=0.0)

    def now(self) -> float:
        return self.seconds

    def advance(self, by_s: float) -> None:
        """Move time forward by `by_s` ≥ 0 seconds."""
        if by_s < 0:
            raise ValueError(f"time cannot be moved by {by_s!r} s: expected a number of at least 0")
        self.seconds += by_s


def file_time() -> float:
    """Return the seconds since 1970, as the times of files are counted: only to tell how old a file is."""
    return time.time()


def wall_time() -> str:
    """Return the local date and time, as `20261124-231714`: for names of run folders, never for decisions."""
    return time.strftime("%Y%m%d-%H%M%S")
