"""Keeps the workers of a run alive: one that dies is started again, until that is hopeless."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from lockstep.common.runtime.backoff import backoff_s
from lockstep.common.runtime.clock import Clock
from lockstep.launch.child import USAGE, WatchedProcess

#: Seconds that a process has to live for its earlier deaths not to count any more.
STEADY_S = 60.0

#: Seconds after which a process has begun its work, so that it was not its start that has ended it: what is killed from
#: outside again and again is back at once each time, and only what dies at its start is started ever more seldom.
BEGUN_S = 2.0

#: Seconds before the first restart at most, and before any: a process that was killed is soon back in its team.
FIRST_S, MOST_S = 0.1, 10.0

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
    #: Those since the last one that had begun its work, with that one.
    early: int = 0

    def delay_s(self, lived_s: float, code: int) -> float | None:
        """Record a death; return the seconds until the restart, None if that is hopeless.

        `lived_s` are the seconds that it lived, `code` is its exit code, negative for a signal.
        """
        if lived_s >= STEADY_S:
            self.deaths = 0
        if code == USAGE or self.deaths >= self.most:
            return None
        self.deaths += 1
        self.early = 1 if lived_s >= BEGUN_S else self.early + 1
        return backoff_s(self.early, first_s=FIRST_S, most_s=MOST_S, seed=self.seed)


#: Starts the worker of that number.
Start = Callable[[int], WatchedProcess]


@dataclass
class SupervisedWorker:
    """One worker's current process, or its last one, and when the next one starts."""

    process: WatchedProcess
    restarts: Restarts
    started_s: float
    #: Whether the death of the process was reported: each is reported once.
    is_reported: bool = False
    #: When the next one starts, None if there will be none.
    due_s: float | None = None

    def has_died(self) -> bool:
        """Return whether its process has died, and nobody was told."""
        return not self.is_reported and self.process.has_ended() and self.process.code != 0

    @property
    def is_given_up(self) -> bool:
        """Whether it has died and is not started again."""
        return self.is_reported and self.due_s is None


@dataclass
class WorkerSupervisor:
    """All workers of a run."""

    start: Start
    clock: Clock
    most: int
    #: How many form a team, one after the other: the first of each leads it.
    team_size: int = 1
    supervised: list[SupervisedWorker] = field(default_factory=list)

    @property
    def processes(self) -> list[WatchedProcess]:
        """The current process of each worker, or its last one."""
        return [worker.process for worker in self.supervised]

    def start_all(self, count: int) -> None:
        """Start so many workers."""
        for number in range(count):
            restarts, started_s = Restarts(self.most, seed=f"worker {number}"), self.clock.now()
            self.supervised.append(SupervisedWorker(self.start(number), restarts, started_s))

    def end_all(self) -> None:
        """End all workers at once; none of them is started again."""
        for worker in self.supervised:
            worker.process.end(0.0)
        self.supervised.clear()

    def is_due(self) -> bool:
        """Return whether `dead` or `restart_due` has something to do."""
        now = self.clock.now()
        return any(
            worker.has_died() or (worker.due_s is not None and now >= worker.due_s) for worker in self.supervised
        )

    def dead(self) -> list[SupervisedWorker]:
        """Return the workers that have died since the last call, and schedule their restarts."""
        found = []
        for worker in self.supervised:
            process = worker.process
            if not worker.has_died():
                continue
            worker.is_reported, now = True, self.clock.now()
            delay_s = worker.restarts.delay_s(process.lived_s(worker.started_s, now), process.code)
            worker.due_s = None if delay_s is None else now + delay_s
            found.append(worker)
        return found

    def are_given_up(self) -> bool:
        """Return whether no team has a leader, and none will be started: the others cannot work without theirs."""
        return all(leader.is_given_up for leader in self.supervised[:: self.team_size])

    def restart_due(self) -> None:
        """Start those again whose time has come."""
        for number, worker in enumerate(self.supervised):
            if worker.due_s is not None and self.clock.now() >= worker.due_s:
                # What the dead one holds, a core of a cluster, is what the next one waits for.
                worker.process.end(0.0)
                worker.due_s, worker.started_s, worker.is_reported = None, self.clock.now(), False
                worker.process = self.start(number)
