"""The only reader of the clock: everything else is given the time, or one of these."""

import os
import time
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """A source of monotonic seconds."""

    def now(self) -> float:
        """Return seconds since an arbitrary start; never runs backwards."""
        ...


class ThreadTimes(NamedTuple):
    """The uses of a thread's time, in seconds since it began."""

    #: For how long it had a core, and for how long it waited for one; 0 where the system does not tell.
    ran: float
    waited: float


class ThreadClock(Clock, Protocol):
    """A clock that also tells what became of the time of the thread that asks."""

    def times(self) -> ThreadTimes:
        """Return for how long this thread has had a core, and for how long it has waited for one."""
        ...


@dataclass
class SystemClock:
    """The machine's monotonic clock; `times` are those of the thread that asks first."""

    #: Descriptor of the file in which Linux tells of waiting, opened once, for the life of the process.
    _schedule: int | None = None

    def now(self) -> float:
        return time.perf_counter()

    def times(self) -> ThreadTimes:
        return ThreadTimes(time.thread_time(), self._waited())

    def _waited(self) -> float:
        try:
            if self._schedule is None:
                self._schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            return 1e-9 * int(os.pread(self._schedule, 64, 0).split()[1])
        except OSError:
            return 0.0


@dataclass
class ManualClock:
    """Time that moves only by `advance`: for simulations and tests."""

    #: Seconds; only ever grows.
    seconds: float = field(default=0.0)

    def now(self) -> float:
        return self.seconds

    def times(self) -> ThreadTimes:
        return ThreadTimes(self.seconds, 0.0)

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
