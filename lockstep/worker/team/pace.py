"""The pace of a team: how fast its processes are, which are present and awake, and the plan that follows from that."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Node
from lockstep.common.numerics.kernels.calls import shows_running
from lockstep.common.runtime.clock import ThreadClock, ThreadTimes
from lockstep.common.runtime.environment import yield_core
from lockstep.worker.team.division import WAITS, OrderPlan, Planner, Speed
from lockstep.worker.team.meeting import Meeting
from lockstep.worker.team.memory import TeamMemory
from lockstep.worker.team.progress import SLEEP_S, Order, Patience

#: The weight of a new measurement of a process's speed.
NEW = 0.3

#: The seconds of computing over which the time without a core is averaged: a process loses its core for some
#: milliseconds each time.
WAITS_S = 0.1

#: A process counts as one that needs at least this part of a core.
LEAST_LOAD = 0.01

#: A measurement counts as at most so many times the value known before.
MOST = 2.0

#: The factor, at each order, for the seconds of a process that is too slow to be given anything.
FORGOTTEN = 0.97

#: The same until it has computed so many times: at first memory is cold, and calls are recorded.
FIRST, FIRST_FORGOTTEN = 24, 0.7

#: Seconds after which a process that was not woken, and has not looked by itself, is taken for dead.
IDLE_S = 4 * SLEEP_S


@dataclass
class Waking:
    """Wakes processes of a team that sleep, and shows whether this one does."""

    memory: TeamMemory
    #: The meeting place of its team, None if it is the only process of its team.
    meeting: Meeting | None
    #: Whether this process has shown that it sleeps.
    is_asleep: bool = False
    #: Whether it has made something since it last saw a stage complete.
    has_added: bool = False
    #: Called between two looks without a pause, since a process of another run may wait for the core meanwhile.
    yield_core: Callable[[], None] = yield_core
    #: Lets kernels show, at a place of memory, that this process has a core while it computes.
    shows_running: Callable[[NDArray[np.float64]], AbstractContextManager[None]] = shows_running

    def show_asleep(self, *, is_asleep: bool) -> None:
        """Show whether this process sleeps, if that has changed."""
        if is_asleep != self.is_asleep:
            self.is_asleep = is_asleep
            self.memory.show("sleeps", int(is_asleep))

    def wake(self, whom: Iterable[int]) -> None:
        """Wake those of some processes that sleep."""
        if self.meeting is not None:
            for process in {*whom}.intersection(self.memory.sleepers()).difference((self.memory.process,)):
                self.meeting.ring(process)


@dataclass
class Pace:
    """Measures this process, and plans orders by the measurements of all."""

    memory: TeamMemory
    clock: ThreadClock
    patience: Patience
    #: Only processes of this session take part.
    session: int = 1
    planner: Planner = field(init=False)
    everybody: frozenset[int] = field(init=False)
    #: How often this process has computed.
    _measured: int = 0

    def __post_init__(self) -> None:
        self.planner = Planner(self.patience.even, self.patience.cores)
        self.everybody = frozenset(range(self.memory.shape.processes))

    # This process is measured

    @property
    def is_measured(self) -> bool:
        """True if the seconds that a micro-batch takes this process are known."""
        return bool(self.memory.mine["seconds"])

    @property
    def has_core(self) -> bool:
        """True if this process has a core for most of the time for which it computes."""
        return bool(self.memory.mine["waits"] <= WAITS)

    def record(self, micro_batches: int, took_s: float, before: ThreadTimes, after: ThreadTimes) -> None:
        """Record the seconds that so many micro-batches have taken, and the times of the thread around them."""
        took_s, waited_s = max(1e-9, took_s), after.waited - before.waited
        self.record_speed(took_s / micro_batches)
        self.record_load((after.ran - before.ran) / max(1e-9, took_s - waited_s))

    def record_waits(self, took_s: float, ran_s: float) -> None:
        """Record for how long this process computed, whether or not to an end, and for how long it had a core then.

        Another process may have its core, or a limit of its control group or a signal prevents it from running: the
        system counts the first of these only.
        """
        mine, took_s = self.memory.mine, max(1e-9, took_s)
        mine["waits"] += min(took_s / WAITS_S, 1.0) * (max(0.0, 1.0 - ran_s / took_s) - mine["waits"])

    def record_speed(self, seconds: float) -> None:
        """Record the seconds that a micro-batch has taken this process."""
        mine = self.memory.mine
        before = float(mine["seconds"])
        # The first ones, in which the model's calls are recorded, take much longer; and so does one in which the
        # process waits for a core, which says little of the next. Later, a fast one says as little: a process that is
        # paused again and again is not as fast as it is between two pauses.
        is_known = before > 0.0 and (seconds > before / 2 or self._measured >= FIRST)
        mine["seconds"] = before + NEW * (min(seconds, MOST * before) - before) if is_known else seconds
        self._measured += 1

    def record_load(self, load: float) -> None:
        """Record the part of its time for which this process had a core, or waited for nothing else."""
        mine = self.memory.mine
        before, now = float(mine["load"]), min(max(load, LEAST_LOAD), 1.0)
        mine["load"] = before + NEW * (now - before) if before else now

    def forget_speed(self, workers: Iterable[int]) -> None:
        """Let this process count as a little faster, because it was given nothing: so it is tried again.

        It does not count as faster than the `workers`, which were given something, because they may just be enough.
        """
        seconds = self.memory.marks.processes["seconds"]
        forgotten = FORGOTTEN if self._measured > FIRST else FIRST_FORGOTTEN
        least = min((float(seconds[process]) for process in workers), default=0.0)
        seconds[self.memory.process] = max(least, forgotten * seconds[self.memory.process])

    # Plans

    @property
    def is_crowded(self) -> bool:
        """True if there are more processes than cores."""
        return len(self.everybody) > self.patience.cores

    def show_ready(self) -> None:
        """Show that this process takes part from now on, in what comes next."""
        memory = self.memory
        for name, value in (("failed", 0), ("sleeps", 0), ("at", memory.marks.newest), ("ready", self.session)):
            memory.show(name, value)

    def plan(self, node: Node, before: Order | None) -> OrderPlan:
        """Return the plan of the next order, for the processes that were not late with the one before."""
        known = self.memory.marks.processes[["seconds", "load", "waits"]].tolist()
        speeds = {process: Speed(*known[process]) for process in self.present(before)}
        return self.planner.plan(node, speeds, () if before is None else before.plan.workers)

    def present(self, before: Order | None) -> list[int]:
        """Return the processes of this session that have been in time for an order: at least this one.

        If cores are short, processes that had nothing to do in it were not woken: it is enough that they live.
        """
        processes = self.memory.marks.processes
        is_present = processes["at"] >= (0 if before is None else before.number)
        if before is not None and self.is_crowded:
            lives = processes["seen_s"] > self.clock.now() - IDLE_S
            lives[list(before.plan.workers)] = False
            is_present |= lives
        is_present &= processes["ready"] == self.session
        is_present[self.memory.process] = True
        return np.nonzero(is_present)[0].tolist()

    def wanted_for(self, plan: OrderPlan) -> frozenset[int]:
        """Return the processes that are to begin with a plan at once: if cores are short, only those that it names."""
        return plan.workers if self.is_crowded else self.everybody
