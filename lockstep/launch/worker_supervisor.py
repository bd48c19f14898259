"""Keeps the workers of a run alive: one that dies is started again, until that is hopeless."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from lockstep.common.runtime.backoff import Backoff
from lockstep.common.runtime.clock import Clock
from lockstep.launch.process_backend import WatchedProcess

#: Seconds that a process has to live for its earlier deaths not to count any more.
STEADY_S = 60.0

#: Seconds before the first restart at most, and before any.
FIRST_S, MOST_S = 0.5, 10.0

#: The exit code of a process that was refused, or cannot do what was asked of it: the next one would end alike.
USAGE = 2

#: The signals by which a processor or a library ends a process that computes: the next one would crash alike.
CRASHES = frozenset({signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP})


def has_crashed(process: WatchedProcess) -> bool:
    """Return whether a process has been ended by such a signal."""
    return process.has_ended() and -process.code in CRASHES


@dataclass
class Restarts:
    """The deaths of one process and of those that took its place."""

    #: How many deaths in a row are followed by a restart.
    most: int
    #: Tells it from the others, so that not all are started in the same moment.
    seed: str
    deaths: int = 0

    def delay_s(self, lived_s: float, code: int) -> float | None:
        """Record a death; return the seconds until the restart, None if that is hopeless.

        `lived_s` are the seconds that it lived, `code` is its exit code, negative for a signal.
        """
        if lived_s >= STEADY_S:
            self.deaths = 0
        if code == USAGE or self.deaths >= self.most:
            return None
        self.deaths += 1
        return Backoff(first_s=FIRST_S, most_s=MOST_S, seed=self.seed).delay_s(self.deaths)


#: Starts the worker of that number.
Start = Callable[[int], WatchedProcess]


@dataclass
class SupervisedWorker:
    """One worker's number, and what has become of those that had it."""

    restarts: Restarts
    started_s: float
    #: The last one whose death was reported: each is reported once.
    reported: WatchedProcess | None = None
    #: When the next one starts, None if there will be none.
    due_s: float | None = None


@dataclass
class WorkerSupervisor:
    """All workers; `workers` has the current process of each, or the last one, and may be read by the caller."""

    start: Start
    workers: list[WatchedProcess]
    clock: Clock
    most: int
    supervised: list[SupervisedWorker] = field(default_factory=list)

    def start_all(self, count: int) -> None:
        """Start so many workers."""
        for number in range(count):
            restarts = Restarts(self.most, seed=f"worker {number}")
            self.supervised.append(SupervisedWorker(restarts, self.clock.now()))
            self.workers.append(self.start(number))

    def dead(self) -> list[int]:
        """Return the numbers of the workers that have died since the last call, and schedule their restarts."""
        found = []
        for number, (worker, process) in enumerate(zip(self.supervised, self.workers, strict=True)):
            if not process.has_ended() or process.code == 0 or process is worker.reported:
                continue
            worker.reported, now = process, self.clock.now()
            delay_s = worker.restarts.delay_s(process.lived_s(worker.started_s, now), process.code)
            worker.due_s = None if delay_s is None else now + delay_s
            found.append(number)
        return found

    def is_given_up(self, number: int) -> bool:
        """Return whether a worker is not started again."""
        worker = self.supervised[number]
        return worker.reported is self.workers[number] and worker.due_s is None

    def are_given_up(self) -> bool:
        """Return whether no worker is left, and none will be started."""
        return all(map(self.is_given_up, range(len(self.supervised))))

    def restart_due(self) -> None:
        """Start those again whose time has come."""
        for number, worker in enumerate(self.supervised):
            if worker.due_s is not None and self.clock.now() >= worker.due_s:
                worker.due_s, worker.started_s = None, self.clock.now()
                # What the dead one holds, a core of a cluster, is what the next one waits for.
                self.workers[number].end(0.0)
                self.workers[number] = self.start(number)
