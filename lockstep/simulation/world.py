"""Virtual time, and the processes that live in it: who acts next is who has something to do first.

A process is a shell with a clock and ports of its own. It takes time when it acts, and can be killed, stopped or slowed
down at any moment; so that a kill may fall between any two things that it does, each look at the clock and each message
is such a moment.
"""

import hashlib
import heapq
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

#: Seconds between two looks of a process at its clock.
PACE_S = 1e-4


#: Bytes of a message's header that tell what it is.
HEAD_BYTES = 16

#: What every run draws anew, in the texts of messages: the name of shared memory and its nonce.
DRAWN_ANEW = re.compile(r"lockstep-[0-9]+-[0-9]+-[0-9a-f]+|\b[0-9a-f]{32}\b")


class Killed(BaseException):  # nothing that a process would catch
    """The end of a process in the middle of what it does."""


class SimulatedShell(Protocol):
    """What acts: one of our shells."""

    def step(self) -> bool:
        """Handle one message, or the passing of time."""
        ...

    def deadline(self) -> float | None:
        """Return when it has something to do although no message comes, by its own clock."""
        ...

    def is_over(self) -> bool:
        """Tell whether it has come to its end."""
        ...

    def last_words(self) -> str:
        """Return why it has ended, empty where all was well."""
        ...

    def cost_s(self) -> float:
        """Return the seconds that its next act takes, beside a moment."""
        ...

    def interrupt(self) -> None:
        """End in order, as by SIGINT."""
        ...

    def close(self) -> None:
        """Give back what the system would take from a process that ends."""
        ...


@dataclass
class World:
    """All processes of one simulated run, and what is to happen to them."""

    now: float = 0.0
    processes: list["Process"] = field(default_factory=list)
    #: Acts and other happenings so far.
    events: int = 0
    #: What happened, where somebody wants to read it.
    trace: list[str] | None = None
    #: Says what a message is, for the trace.
    describe: Callable[[Sequence[memoryview]], str] = lambda frames: f"{len(frames)} frames"
    #: What is to happen at a time, in the order of (time, number).
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0
    _digest: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def at(self, time: float, happening: Callable[[], None]) -> None:
        """Let something happen at a time."""
        self._number += 1
        heapq.heappush(self._agenda, (max(time, self.now), self._number, happening))

    def after(self, seconds: float, happening: Callable[[], None]) -> None:
        """Let something happen in so many seconds."""
        self.at(self.now + seconds, happening)

    def record(self, who: str, what: str) -> None:
        """Book what happened."""
        line = f"{self.now:11.6f} {who}: {what}"
        self._digest.update(line.encode() + b"\n")
        if self.trace is not None:
            self.trace.append(line)

    def record_message(self, who: str, frames: Sequence[memoryview]) -> None:
        """Book that a message was heard: by its head and its lengths, since a whole one may hold what is drawn anew."""
        head, arrays = bytes(frames[0][:HEAD_BYTES]), [frame.nbytes for frame in frames[1:]]
        self._digest.update(f"{self.now:.6f} {who} {head!r} {arrays}\n".encode())
        if self.trace is not None:
            told = DRAWN_ANEW.sub("…", self.describe(frames))
            self.trace.append(f"{self.now:11.6f} {who}: hears {told}")

    def digest(self) -> str:
        """Return the digest of all that happened so far."""
        return self._digest.hexdigest()

    def turn(self) -> bool:
        """Let the next thing happen; return whether there was any."""
        actor = min(self.processes, key=_due, default=None)
        due = math.inf if actor is None else actor.due
        if self._agenda and self._agenda[0][0] <= due:
            self.now, _, happening = heapq.heappop(self._agenda)
            happening()
        elif actor is not None and due < math.inf:
            self.now = max(self.now, due)
            actor.act()
        else:
            return False
        self.events += 1
        return True


def _due(process: "Process") -> float:
    return process.due


@dataclass
class ProcessClock:
    """The clock of one process: it runs while the process acts, and may jump ahead."""

    process: "Process"
    #: Seconds by which it is ahead of the world's.
    ahead_s: float = 0.0

    def now(self) -> float:
        self.process.tick()
        return self.process.time() + self.ahead_s


@dataclass
class Process:
    """One process: a shell in the world."""

    name: str
    world: World
    clock: ProcessClock = field(init=False)
    shell: SimulatedShell | None = None
    #: When it acts next, in seconds of the world's clock.
    due: float = math.inf
    #: Until when what it did last takes, and how far it has got within an act.
    busy_until: float = 0.0
    lead_s: float = 0.0
    #: Seconds between two of its moments, and how many times as long as a fast one it takes for work.
    pace_s: float = PACE_S
    slowness: float = 1.0
    is_stopped: bool = False
    is_dead: bool = False
    #: Moments until it is killed, None where it is not to be.
    fuse: int | None = None
    #: When the first message that it has not seen comes to each of its ports.
    arrivals: list[Callable[[], float]] = field(default_factory=list)
    #: Is called when it has ended, with whether it was killed.
    on_end: Callable[["Process", bool], None] = lambda process, is_killed: None

    def __post_init__(self) -> None:
        self.clock = ProcessClock(self)

    def time(self) -> float:
        """Return the world's time as far as the process has got."""
        return self.world.now + self.lead_s

    def tick(self) -> None:
        """Let a moment pass: the last one, where the process is to be killed now."""
        self.lead_s += self.pace_s
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.fuse = None
                raise Killed

    def start(self, open_shell: Callable[[], SimulatedShell]) -> None:
        """Begin to live."""
        self.world.processes.append(self)
        self._live(lambda: self._open(open_shell))

    def _open(self, open_shell: Callable[[], SimulatedShell]) -> None:
        self.shell = open_shell()

    def act(self) -> None:
        """Let the shell do one thing."""
        shell = self.shell
        assert shell is not None
        cost_s = shell.cost_s() * self.slowness
        # Spread over the moments of the act, so that the process sees that it takes time.
        self.pace_s = PACE_S + cost_s / 4
        self._live(lambda: _step(shell))
        self.pace_s = PACE_S

    def _live(self, act: Callable[[], None]) -> None:
        self.lead_s = 0.0
        try:
            act()
        except Killed:
            self.end(is_killed=True)
            return
        finally:
            self.busy_until, self.lead_s = self.world.now + self.lead_s, 0.0
        if self.shell is not None and self.shell.is_over():
            self.end(is_killed=False)
        else:
            self.reschedule()

    def reschedule(self) -> None:
        """Find out when there is something to do."""
        if self.shell is None or self.is_stopped or self.is_dead:
            self.due = math.inf
            return
        deadline = self.shell.deadline()
        due = min((arrival() for arrival in self.arrivals), default=math.inf)
        if deadline is not None:
            due = min(due, deadline - self.clock.ahead_s)
        self.due = max(due, self.busy_until)

    def interrupt(self) -> None:
        """End in order, as by SIGINT; what does not run ends when it does."""
        shell = self.shell
        if shell is not None and not self.is_dead:
            self._live(shell.interrupt)

    def wake(self, at: float) -> None:
        """Know of a message that arrives at a time."""
        if not (self.shell is None or self.is_stopped or self.is_dead):
            self.due = min(self.due, max(at, self.busy_until))

    def stop(self) -> None:
        """Stand still, as by SIGSTOP."""
        self.is_stopped = True
        self.reschedule()

    def go_on(self) -> None:
        """Go on, as by SIGCONT."""
        self.is_stopped = False
        self.reschedule()

    def hurry(self) -> None:
        """Work as fast as the others again."""
        self.slowness = 1.0

    def jump(self, seconds: float) -> None:
        """Let the clock jump ahead, as after a machine's sleep."""
        self.clock.ahead_s += seconds
        self.reschedule()

    def end(self, *, is_killed: bool) -> None:
        """End, now."""
        if self.is_dead:
            return
        self.is_dead, self.due, self.fuse = True, math.inf, None
        self.world.processes.remove(self)
        if self.shell is not None:
            self.shell.close()
        self.on_end(self, is_killed)


def _step(shell: SimulatedShell) -> None:
    shell.step()
