"""The only reader of the clock: everything else is given the time, or one of these."""

import datetime
import os
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


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


#: So far ahead that each part of a date and of a time of day is another one.
AHEAD = datetime.timedelta(days=400, hours=2, minutes=11, seconds=17)

#: By their units in a second, functions of `time` that return a number.
_COUNTING = {
    1: ("time", "monotonic", "perf_counter", "process_time", "thread_time"),
    10**9: ("time_ns", "monotonic_ns", "perf_counter_ns", "process_time_ns", "thread_time_ns"),
}


@contextmanager
def clocks_ahead(namespaces: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Within the context, clocks are ahead for functions with these global variables, and for no other code.

    A clock that is read in whole seconds, or as a date, shows the same in two passes that follow one another.
    """
    ahead = {id(value): other for value, other in _clocks()}
    found = [(each, key, value) for each in namespaces for key, value in list(each.items()) if id(value) in ahead]
    try:
        for each, key, value in found:
            each[key] = ahead[id(value)]
        yield
    finally:
        for each, key, value in found:
            each[key] = value


def _clocks() -> Iterator[tuple[Any, Any]]:
    """Yield what code reads the time with, and the same ahead: functions, classes, and the modules that have them."""

    def seconds() -> float:
        return time.time() + AHEAD.total_seconds()

    of_time: dict[str, Any] = {}
    for unit, names in _COUNTING.items():
        for name in names:
            of_time[name] = _adding(getattr(time, name), int(AHEAD.total_seconds()) * unit)
    for name in ("localtime", "gmtime", "ctime"):
        show = getattr(time, name)
        of_time[name] = lambda at=None, show=show: show(seconds() if at is None else at)
    of_time["strftime"] = lambda text, at=None: time.strftime(text, time.localtime(seconds()) if at is None else at)
    date, clock = datetime.date, datetime.datetime
    of_clock = {
        "now": classmethod(lambda cls, tz=None: clock.now(tz) + AHEAD),
        "today": classmethod(lambda cls: clock.now() + AHEAD),
        "utcnow": classmethod(lambda cls: clock.now(datetime.UTC).replace(tzinfo=None) + AHEAD),
    }
    of_date = {
        "date": type("date", (date,), {"today": classmethod(lambda cls: date.today() + AHEAD)}),
        "datetime": type("datetime", (clock,), of_clock),
    }
    for module, changed in ((time, of_time), (datetime, of_date)):
        yield module, _like(module, changed)
        yield from ((getattr(module, name), other) for name, other in changed.items())


def _adding(read: Callable[[], Any], more: int) -> Callable[[], Any]:
    return lambda: read() + more


def _like(module: types.ModuleType, changed: Mapping[str, Any]) -> types.ModuleType:
    """Return a module with the names of another one, some of which are changed."""
    like = types.ModuleType(module.__name__)
    vars(like).update({**vars(module), **changed})
    return like
