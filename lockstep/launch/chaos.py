"""`--chaos`: what a run does to its own processes, at moments that a seed draws, to show that nothing is lost by it.

Moments are parts of the run, counted in steps, so that they do not depend on how fast a machine is. Whoever is stopped
or slowed down is let go after some steps, or after some seconds where there are no steps without it.
"""

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from common.errors import UsageError
from common.files.spelling import nearest
from common.protocol.messages import Status
from common.random import Purpose, generator
from common.runtime.clock import Clock
from lockstep.launch.process_backend import WatchedProcess
from lockstep.runs.launch import Launch

#: The part of a run in which things happen: not before it has begun, nor when it is nearly over.
FIRST, LAST = 0.05, 0.9

#: Share of the run's steps for which a process stands still or is slow, and seconds after which it is let go anyway.
SPELL, SPELL_S = 0.05, 3.0

#: Of each look at the run, a slow worker stands still for so many of so many.
SLOW_LOOKS = (4, 5)

#: Most times that one thing can be asked for.
MOST = 1000


class ChaosAction(Enum):
    """What can be done."""

    KILL_WORKER = "kill-worker"
    STOP_WORKER = "stop-worker"
    SLOW_WORKER = "slow-worker"
    KILL_SERVER = "kill-server"
    KILL_SHARD = "kill-shard"
    STOP_SERVER = "stop-server"


#: Those after which somebody has to be started again.
KILLS = frozenset({ChaosAction.KILL_WORKER, ChaosAction.KILL_SERVER, ChaosAction.KILL_SHARD})


@dataclass(frozen=True, kw_only=True)
class PlannedAction:
    """One deed, and when it is due."""

    #: A part of the run, in [0, 1).
    moment: float
    deed: ChaosAction
    #: Whose turn it is, counted modulo those that there are.
    victim: int


def parse_chaos(text: str) -> dict[ChaosAction, int]:
    """Return what `kill-worker=5 slow-worker=1` asks for; `UsageError` where it is nothing that can be done."""
    wanted: dict[ChaosAction, int] = {}
    names = [deed.value for deed in ChaosAction]
    for word in text.replace(",", " ").split():
        found = re.fullmatch(r"([a-z-]+)=([0-9]{1,6})", word)
        if found is None or not 0 < int(found[2]) <= MOST:
            raise UsageError(f"--chaos {word!r}: expected NAME=COUNT, as kill-worker=5, with a count of 1 to {MOST}")
        if found[1] not in names:
            raise UsageError(
                f"--chaos {word!r}: nothing is called {found[1]!r}{nearest(found[1], names)}: expected one of "
                f"{', '.join(names)}"
            )
        deed = ChaosAction(found[1])
        wanted[deed] = wanted.get(deed, 0) + int(found[2])
    if not wanted:
        raise UsageError("--chaos asks for nothing: expected NAME=COUNT, as kill-worker=5")
    return wanted


def check_chaos(wanted: dict[ChaosAction, int], launch: Launch) -> None:
    """Raise `UsageError` where nobody is there for it to happen to."""
    if not launch.workers:
        raise UsageError("--chaos does things to a run's processes, and --workers 0 has none: expected 1 or more")
    if ChaosAction.KILL_SHARD in wanted and launch.servers == 1:
        raise UsageError(
            f"--chaos kill-shard={wanted[ChaosAction.KILL_SHARD]} with --servers 1, which has no shards: "
            "expected 2 or more"
        )
    if not launch.max_restarts and wanted.keys() & KILLS:
        raise UsageError("--chaos kills processes, and with --max-restarts 0 none is started again: expected 1 or more")


def planned_actions(wanted: dict[ChaosAction, int], seed: int) -> list[PlannedAction]:
    """Return when to do what, in order: the same for the same seed."""
    rng = generator(seed, Purpose.SIMULATE, layer=4)
    made = [
        PlannedAction(
            moment=FIRST + (LAST - FIRST) * float(rng.random()), deed=deed, victim=int(rng.integers(0, 2**31))
        )
        for deed in ChaosAction
        for _ in range(wanted.get(deed, 0))
    ]
    return sorted(made, key=lambda it: it.moment)


@dataclass(frozen=True)
class ChaosRequest:
    """What is to be done to a run, and the seed of its moments."""

    counts: dict[ChaosAction, int]
    seed: int


class Victims(Protocol):
    """The processes of a run."""

    @property
    def server(self) -> WatchedProcess: ...
    @property
    def workers(self) -> Sequence[WatchedProcess]: ...
    @property
    def shards(self) -> Sequence[WatchedProcess]: ...


@dataclass
class Spell:
    """A process that stands still, or is slow, for a while."""

    child: WatchedProcess
    is_slow: bool
    #: Let go at that step, or at that time.
    until_step: int
    until_s: float
    looks: int = 0


@dataclass
class Chaos:
    """Carries out appointments; to be asked often."""

    ahead: list[PlannedAction]
    clock: Clock
    say: Callable[[str], None]
    spells: list[Spell] = field(default_factory=list)
    #: How many were carried out.
    done: int = 0

    def look(self, status: Status | None, victims: Victims) -> None:
        """Do what is due now, if anything is: one thing at a time, so that a run can get up before the next."""
        self._go_on(status)
        if status is None or not status.steps or not self.ahead:
            return
        due = self.ahead[0]
        # Before the first step nobody is at work yet.
        if status.step <= due.moment * status.steps or not status.step:
            return
        child = self._victim(due, victims)
        if child is not None:
            del self.ahead[0]
            self.done += 1
            self._do(due.deed, child, status)

    def _victim(self, due: PlannedAction, victims: Victims) -> WatchedProcess | None:
        """Return whose turn it is, None where all of them are gone or stand still: then it is later."""
        afflicted = [spell.child for spell in self.spells]
        match due.deed:
            case ChaosAction.KILL_SERVER | ChaosAction.STOP_SERVER:
                group: Sequence[WatchedProcess] = [victims.server]
            case ChaosAction.KILL_SHARD:
                group = victims.shards
            case _:
                group = victims.workers
        able = [child for child in group if child not in afflicted and not child.has_ended()]
        return able[due.victim % len(able)] if able else None

    def _do(self, deed: ChaosAction, child: WatchedProcess, status: Status) -> None:
        told = f"{child.named()} at step {status.step}"
        if deed in KILLS:
            self.say(f"chaos: killed {told}")
            child.kill_on_purpose()
            return
        is_slow = deed is ChaosAction.SLOW_WORKER
        until_step = status.step + max(2, round(SPELL * status.steps))
        self.spells.append(Spell(child, is_slow, until_step, self.clock.now() + SPELL_S))
        self.say(f"chaos: {'slowed down' if is_slow else 'stopped'} {told}, until step {until_step}")
        if not is_slow:
            child.send(signal.SIGSTOP)

    def _go_on(self, status: Status | None) -> None:
        """Let go those whose time has come; let the slow ones stand still for most of the time."""
        for spell in list(self.spells):
            is_over = self.clock.now() >= spell.until_s or (status is not None and status.step >= spell.until_step)
            if is_over:
                self.spells.remove(spell)
                spell.child.send(signal.SIGCONT)
            elif spell.is_slow:
                still, every = SLOW_LOOKS
                spell.child.send(signal.SIGSTOP if spell.looks % every < still else signal.SIGCONT)
                spell.looks += 1

    def end(self) -> None:
        """Let everybody go: the run is over."""
        for spell in self.spells:
            spell.child.send(signal.SIGCONT)
        self.spells.clear()
        left = f"; {len(self.ahead)} things were still to come when the run was over" if self.ahead else ""
        self.say(f"chaos: {self.done} things were done to the run{left}")


def chaos_of(request: ChaosRequest, clock: Clock, say: Callable[[str], None]) -> Chaos:
    """Return what does to a run what is asked for."""
    return Chaos(planned_actions(request.counts, request.seed), clock, say)
