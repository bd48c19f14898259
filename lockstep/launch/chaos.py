"""`--chaos`: faults that a run injects into its own processes, at moments drawn from a seed, to show that none matters.

Moments are parts of the run, counted in steps, so that they do not depend on how fast a machine is. A process that is
stopped or slowed down is released after some steps, or after some seconds if there are no steps without it.
"""

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import msgspec

from lockstep.common.errors import UsageError, nearest
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock
from lockstep.launch.supervision.child import WatchedProcess
from lockstep.launch.supervision.restarts import Role

#: The part of a run in which things happen: not before it has begun, nor when it is nearly over.
FIRST, LAST = 0.05, 0.9

#: Share of the run's steps for which a process is stopped or slow, and seconds after which it is released anyway.
DISTURBANCE, DISTURBANCE_S = 0.05, 3.0

#: A slow worker is stopped for so many of so many polls of the run.
SLOW_POLLS = (4, 5)

#: Most times that one thing can be asked for.
MOST = 1000


class ChaosAction(Enum):
    """The faults that can be injected."""

    KILL_WORKER = "kill-worker"
    STOP_WORKER = "stop-worker"
    SLOW_WORKER = "slow-worker"
    KILL_SERVER = "kill-server"
    KILL_SHARD = "kill-shard"
    STOP_SERVER = "stop-server"

    @property
    def role(self) -> Role:
        """The processes that it disturbs: the name of an action ends with their role."""
        return Role(self.value.partition("-")[2])


#: Those after which a process has to be started again.
KILLS = frozenset({ChaosAction.KILL_WORKER, ChaosAction.KILL_SERVER, ChaosAction.KILL_SHARD})


class PlannedAction(msgspec.Struct, frozen=True, kw_only=True):
    """One action, and when it is due."""

    #: A part of the run, in [0, 1).
    moment: float
    action: ChaosAction
    #: The number of the process, modulo those that there are.
    target: int


def parse_chaos(text: str) -> dict[ChaosAction, int]:
    """Return the counts that `kill-worker=5 slow-worker=1` asks for; `UsageError` if it is malformed."""
    wanted: dict[ChaosAction, int] = {}
    names = [action.value for action in ChaosAction]
    for word in text.replace(",", " ").split():
        found = re.fullmatch(r"([a-z-]+)=([0-9]{1,6})", word)
        if found is None or not 0 < int(found[2]) <= MOST:
            raise UsageError(f"--chaos {word!r}: expected NAME=COUNT, as kill-worker=5, with a count of 1 to {MOST}")
        if found[1] not in names:
            raise UsageError(
                f"--chaos {word!r}: unknown fault {found[1]!r}{nearest(found[1], names)}: expected one of "
                f"{', '.join(names)}"
            )
        action = ChaosAction(found[1])
        wanted[action] = wanted.get(action, 0) + int(found[2])
    if not wanted:
        raise UsageError("--chaos is empty: expected NAME=COUNT, as kill-worker=5")
    return wanted


def check_chaos(wanted: dict[ChaosAction, int], launch: RunOptions) -> None:
    """Raise `UsageError` if the run has no process for it."""
    if not launch.workers:
        raise UsageError("--chaos needs worker processes, and --workers 0 has none: expected 1 or more")
    if ChaosAction.KILL_SHARD in wanted and launch.servers == 1:
        raise UsageError(
            f"--chaos kill-shard={wanted[ChaosAction.KILL_SHARD]} with --servers 1, which has no shards: "
            "expected 2 or more"
        )
    if not launch.max_restarts and wanted.keys() & KILLS:
        raise UsageError("--chaos kills processes, and with max_restarts = 0 none is restarted: expected 1 or more")


def planned_actions(wanted: dict[ChaosAction, int], seed: int) -> list[PlannedAction]:
    """Return when to do what, in order: the same for the same seed."""
    rng = generator(seed, Purpose.SIMULATE, layer=4)
    made = [
        PlannedAction(
            moment=FIRST + (LAST - FIRST) * float(rng.random()), action=action, target=int(rng.integers(0, 2**31))
        )
        for action in ChaosAction
        for _ in range(wanted.get(action, 0))
    ]
    return sorted(made, key=lambda it: it.moment)


#: Returns the processes of a run that have a role in it, as `Crew.at`.
ProcessesOf = Callable[[Role], Sequence[WatchedProcess]]


class Interference(Protocol):
    """Disturbs the processes of a run on purpose."""

    def on_status(self, status: Status | None, processes: ProcessesOf) -> None:
        """Inject the faults that are due: called at each poll of the run, with None if it did not answer."""
        ...

    def end(self) -> None:
        """Release all processes: called once, before they are ended."""
        ...


@dataclass
class Disturbance:
    """A process that is stopped, or slow, for a while."""

    child: WatchedProcess
    is_slow: bool
    #: Released at that step, or at that time.
    until_step: int
    until_s: float
    polls: int = 0


@dataclass
class Chaos:
    """Carries out the planned actions; to be called often."""

    ahead: list[PlannedAction]
    clock: Clock
    say: Callable[[str], None]
    disturbances: list[Disturbance] = field(default_factory=list)
    #: How many were carried out.
    done: int = 0

    def on_status(self, status: Status | None, processes: ProcessesOf) -> None:
        """Inject at most one fault that is due, so that the run can recover before the next one."""
        self._release_due(status)
        if status is None or not status.steps or not self.ahead:
            return
        due = self.ahead[0]
        # Before the first step no process is at work yet.
        if status.step <= due.moment * status.steps or not status.step:
            return
        child = self._target(due, processes)
        if child is not None:
            del self.ahead[0]
            self.done += 1
            self._do(due.action, child, status)

    def _target(self, due: PlannedAction, processes: ProcessesOf) -> WatchedProcess | None:
        """Return the process it is done to, None if all are gone or stand still: then it is done later."""
        afflicted = [disturbance.child for disturbance in self.disturbances]
        group = processes(due.action.role)
        # One without a number waits for room in a cluster.
        able = [child for child in group if child not in afflicted and not child.has_ended() and child.pid]
        return able[due.target % len(able)] if able else None

    def _do(self, action: ChaosAction, child: WatchedProcess, status: Status) -> None:
        where = f"{child.named()} at step {status.step}"
        if action in KILLS:
            self.say(f"chaos: killed {where}")
            child.kill_on_purpose()
            return
        is_slow = action is ChaosAction.SLOW_WORKER
        until_step = status.step + max(2, round(DISTURBANCE * status.steps))
        self.disturbances.append(Disturbance(child, is_slow, until_step, self.clock.now() + DISTURBANCE_S))
        self.say(f"chaos: {'slowed down' if is_slow else 'stopped'} {where}, until step {until_step}")
        if not is_slow:
            child.send(signal.SIGSTOP)

    def _release_due(self, status: Status | None) -> None:
        """Release the processes whose time is over; let the slow ones stand still for most of the time."""
        for disturbance in list(self.disturbances):
            is_over = self.clock.now() >= disturbance.until_s or (
                status is not None and status.step >= disturbance.until_step
            )
            if is_over:
                self.disturbances.remove(disturbance)
                disturbance.child.send(signal.SIGCONT)
            elif disturbance.is_slow:
                still, every = SLOW_POLLS
                disturbance.child.send(signal.SIGSTOP if disturbance.polls % every < still else signal.SIGCONT)
                disturbance.polls += 1

    def end(self) -> None:
        """Release all processes: the run is over."""
        for disturbance in self.disturbances:
            disturbance.child.send(signal.SIGCONT)
        self.disturbances.clear()
        self.say(f"chaos: injected {self.done} of {self.done + len(self.ahead)} faults")
