"""Virtual time, and the processes in it: the next to act is the one with the earliest deadline or message.

A process is a shell with a clock and ports of its own. Its actions take time, and it can be killed, stopped or slowed
down at any tick: each look at the clock, each message, and each mark and lock in shared memory is one. On a strand of
its own a process is suspended at a tick while the world catches up, pauses there, or sleeps. Other processes act
meanwhile, and see in memory what it has written until then.
"""

import hashlib
import heapq
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from lockstep.common.runtime.clock import ThreadTimes
from lockstep.common.statemachine.client import Exit
from lockstep.common.transport.in_memory import Host, Timeline
from tests.simulation.simulator.strand import Killed, Strand

#: Seconds that a tick takes, if nothing else is given.
TICK_S = 1e-4

#: Seconds by which a process on a strand may be ahead of the world within an action.
QUANTUM_S = 1e-3

#: Bytes of a header that identify the message.
HEAD_BYTES = 16

#: The parts of messages that differ in every run: the name of shared memory and its nonce, and the room on a disk.
VARYING = re.compile(r"lockstep-[0-9]+-[0-9]+-[0-9a-f]+|\b[0-9a-f]{32}\b|[0-9,]+ KiB are free")


#: When a process acts next.
_DUE = attrgetter("due")


class SimulatedShell(ABC):
    """A shell that can run in virtual time."""

    @abstractmethod
    def step(self) -> bool:
        """Handle one message, or the passing of time."""

    @abstractmethod
    def deadline(self) -> float | None:
        """Return the time by its own clock at which it has to act without a message."""

    @abstractmethod
    def exit(self) -> Exit | None:
        """Return with what it has ended; None while it has not."""

    def cost_s(self) -> float:
        """Return the seconds that its next action takes, besides its ticks."""
        return 0.0

    def weights_step(self) -> int | None:
        """Return the step of its weights, None if it has none."""
        return None

    @abstractmethod
    def interrupt(self) -> None:
        """End in order, as by SIGINT."""

    @abstractmethod
    def close(self) -> None:
        """Release what the system would release when a process ends."""


@dataclass
class World(Timeline):
    """All processes of a simulated run, and all scheduled actions."""

    #: Seconds that a tick takes.
    tick_s: float = TICK_S
    processes: list["Process"] = field(default_factory=list)
    #: Actions and scheduled events so far.
    events: int = 0
    #: A line per event, if a trace is wanted.
    is_traced: bool = False
    trace: list[str] = field(default_factory=list)
    #: Describes a message for the trace.
    describe: Callable[[Sequence[memoryview]], str] = lambda frames: f"{len(frames)} frames"
    #: Scheduled actions, in the order of (time, number).
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0
    _digest: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Schedule an action at a time."""
        self._number += 1
        heapq.heappush(self._agenda, (max(time, self.now), self._number, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Schedule an action in a number of seconds."""
        self.at(self.now + seconds, action)

    def record(self, who: str, what: str) -> None:
        """Record an event."""
        line = f"{self.now:11.6f} {who}: {what}"
        self._digest.update(line.encode() + b"\n")
        if self.is_traced:
            self.trace.append(line)

    def record_message(self, who: str, frames: Sequence[memoryview]) -> None:
        """Record a received message by its head and lengths, since its content may vary between equal runs."""
        head, arrays = bytes(frames[0][:HEAD_BYTES]), [frame.nbytes for frame in frames[1:]]
        self._digest.update(f"{self.now:.6f} {who} {head!r} {arrays}\n".encode())
        if self.is_traced:
            text = VARYING.sub("…", self.describe(frames))
            self.trace.append(f"{self.now:11.6f} {who}: receives {text}")

    def digest(self) -> str:
        """Return the digest of all events so far."""
        return self._digest.hexdigest()

    def turn(self) -> bool:
        """Carry out the next event; return whether there was one."""
        actor = min(self.processes, key=_DUE, default=None)
        due = math.inf if actor is None else actor.due
        if self._agenda and self._agenda[0][0] <= due:
            self.now, _, action = heapq.heappop(self._agenda)
            action()
        elif actor is not None and due < math.inf:
            self.now = max(self.now, due)
            actor.act()
        else:
            return False
        self.events += 1
        return True


@dataclass
class Ticks:
    """The ticks of one process: how long they take, and at which it is killed, or pauses."""

    #: Seconds that a tick of its current action takes longer, and how many times as long as a fast process it takes
    #: for its work.
    work_s: float = 0.0
    slowness: float = 1.0
    #: Ticks until it is killed, None if it is not.
    kill_after: int | None = None
    #: Ticks until it pauses, None if it does not, and for how many seconds.
    pause_after: int | None = None
    pause_s: float = 0.0
    #: Seconds that the second next tick takes longer, and whether that is the next one.
    _owed_s: float = 0.0
    _owes_next: bool = False

    def begin(self, cost_s: float) -> None:
        """Begin with an action that takes so many seconds besides its ticks."""
        # Spread over the ticks of the action, so that the process sees that it takes time.
        self.work_s = cost_s * self.slowness / 4

    def end(self) -> None:
        """End the action."""
        self.work_s = self._owed_s = 0.0

    def work(self, seconds: float) -> None:
        """Take so many seconds between the next tick and the one after; a slow process takes longer."""
        self._owed_s, self._owes_next = seconds * self.slowness, False

    def next_s(self, tick_s: float) -> float:
        """Return the seconds that a tick takes, of which one without work takes `tick_s`."""
        owed = self._owed_s if self._owes_next else 0.0
        self._owed_s, self._owes_next = self._owed_s - owed, self._owed_s > owed
        return tick_s + self.work_s + owed

    def kill(self) -> None:
        """Raise Killed if this tick is the last one."""
        if self.kill_after is not None:
            self.kill_after -= 1
            if self.kill_after <= 0:
                self.kill_after = None
                raise Killed

    def still_s(self) -> float:
        """Return for how many seconds the process pauses at this tick."""
        if self.pause_after is not None:
            self.pause_after -= 1
            if self.pause_after <= 0:
                self.pause_after = None
                return self.pause_s
        return 0.0


@dataclass(eq=False)
class Process(Host):
    """One process: a shell in the world, and its clock, which advances while it acts, and may jump ahead."""

    timeline: World
    #: Seconds by which its clock is ahead of that of the world.
    ahead_s: float = 0.0
    shell: SimulatedShell | None = None
    #: When it acts next, by the clock of the world.
    due: float = math.inf
    #: When its last action ends, and how far the current one has got.
    busy_until: float = 0.0
    lead_s: float = 0.0
    ticks: Ticks = field(default_factory=Ticks)
    is_stopped: bool = False
    is_dead: bool = False
    #: The strand on which it acts; None if each of its actions is atomic to other processes. A process that never
    #: sleeps, and takes almost no time, needs it only for an action in which it pauses: changing strands takes time.
    strand: Strand | None = None
    needs_strand: bool = True
    #: Called before each action.
    on_act: Callable[["Process"], None] = lambda process: None
    #: Called when it has ended, with whether it was killed.
    on_end: Callable[["Process", bool], None] = lambda process, is_killed: None
    #: When it wakes up without a ring, by the clock of the world; None while it does not sleep.
    _alarm: float | None = None
    #: Whether it is to end in order once its action has ended.
    _is_interrupted: bool = False

    def now(self) -> float:
        """Return the time by its own clock; to look takes a tick."""
        self.tick()
        return self.time() + self.ahead_s

    def times(self) -> ThreadTimes:
        """Return what became of its time: it has a core of its own."""
        return ThreadTimes(self.time(), 0.0)

    def time(self) -> float:
        """Return the time of the world as far as the process has got."""
        return self.timeline.now + self.lead_s

    def tick(self) -> None:
        """Let a tick pass; raise Killed if it is the last one."""
        if self.is_dead:
            return
        self.lead_s += self.ticks.next_s(self.timeline.tick_s)
        self.ticks.kill()
        if self.strand is not None and self.strand.is_running:
            self.lead_s += self.ticks.still_s()
            if self.lead_s >= QUANTUM_S:
                self.strand.suspend()

    def sleep(self, seconds: float) -> None:
        """Sleep until a ring, for so many seconds at most; not at all without a strand."""
        if self.strand is not None and self.strand.is_running:
            self._alarm = self.time() + seconds
            self.strand.suspend()
            self._alarm = None

    def ring(self, at: float) -> None:
        """Wake up at a time, or earlier."""
        if self._alarm is not None:
            self._alarm = min(self._alarm, at)
            self.reschedule()

    def start(self, open_shell: Callable[[], SimulatedShell]) -> None:
        """Start the process."""
        self.timeline.processes.append(self)
        self._run(lambda: setattr(self, "shell", open_shell()))

    def act(self) -> None:
        """Let the shell carry out an action, or resume the current one."""
        if self.is_in_action():
            assert self.strand is not None
            self._carry_on(self.strand.resume)
            return
        assert self.shell is not None
        self.on_act(self)
        self.ticks.begin(self.shell.cost_s())
        self._run(self.shell.step)

    def is_in_action(self) -> bool:
        """Tell whether it pauses, or sleeps, in the middle of an action."""
        return self.strand is not None and self.strand.is_suspended

    def _run(self, act: Callable[[], object]) -> None:
        strand = self.strand
        if strand is not None and (self.needs_strand or self.ticks.pause_after is not None):
            self._carry_on(lambda: strand.run(act))
        else:
            self._carry_on(lambda: (act(), True)[1])

    def _carry_on(self, go: Callable[[], bool]) -> None:
        """Continue with an action, which returns whether it has ended."""
        # After its last action, which may have taken it until later than now: its time never goes back.
        self.lead_s = max(0.0, self.busy_until - self.timeline.now)
        try:
            is_over = go()
        except Killed:
            self.end(is_killed=True)
            return
        finally:
            self.busy_until, self.lead_s = self.timeline.now + self.lead_s, 0.0
        if not is_over:
            self.reschedule()
            return
        self.ticks.end()
        if self.shell is not None and self._is_interrupted:
            self._is_interrupted = False
            self._run(self.shell.interrupt)
        elif self.shell is not None and self.shell.exit() is not None:
            self.end(is_killed=False)
        else:
            self.reschedule()

    def reschedule(self) -> None:
        """Find out when it has to act next."""
        if self.is_stopped or self.is_dead:
            self.due = math.inf
        elif self.is_in_action():
            self.due = max(self.busy_until, self._alarm or 0.0)
        elif self.shell is None:
            self.due = math.inf
        else:
            deadline = self.shell.deadline()
            due = min((arrival() for arrival in self.arrivals), default=math.inf)
            if deadline is not None:
                due = min(due, deadline - self.ahead_s)
            self.due = max(due, self.busy_until)

    def interrupt(self) -> None:
        """End in order, as by SIGINT; a stopped process ends when it resumes."""
        shell = self.shell
        if shell is None or self.is_dead:
            return
        if self.is_in_action():
            self._is_interrupted = True
            self.ring(self.timeline.now)
        else:
            self._run(shell.interrupt)

    def wake(self, at: float) -> None:
        """Act at a time, at which a message arrives, or earlier."""
        if not (self.shell is None or self.is_stopped or self.is_dead or self.is_in_action()):
            self.due = min(self.due, max(at, self.busy_until))

    def stop(self) -> None:
        """Stop, as by SIGSTOP."""
        self.is_stopped = True
        self.reschedule()

    def resume(self) -> None:
        """Resume, as by SIGCONT."""
        self.is_stopped = False
        self.reschedule()

    def jump_clock(self, seconds: float) -> None:
        """Let the clock jump ahead, as after the sleep of a machine."""
        self.ahead_s += seconds
        self.reschedule()

    def end(self, *, is_killed: bool) -> None:
        """End at once."""
        if self.is_dead:
            return
        self.is_dead, self.due, self.ticks.kill_after = True, math.inf, None
        self.timeline.processes.remove(self)
        if self.strand is not None:
            self.strand.end()
        if self.shell is not None:
            self.shell.close()
        self.on_end(self, is_killed)
