"""A worker that is several processes: the command of each, their supervisor, and the team that commands share."""

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import msgspec

from lockstep.common.protocol.messages import PROCESSES_LIMIT
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.environment import core_numbers, cores, kept_to_core
from lockstep.common.runtime.interrupts import held_back
from lockstep.common.statemachine.client import Exit
from lockstep.common.transport.shared_memory.file_lock import FileLock
from lockstep.common.transport.shared_memory.folder import SharedFolder, sweep
from lockstep.launch.supervision.channel import ChildReport
from lockstep.launch.supervision.child import GRACE_S, Crew, exit_message
from lockstep.launch.supervision.restarts import (
    INTERRUPTED,
    PlaceState,
    ProcessEnd,
    ProcessPlace,
    ProcessTable,
    Role,
)
from lockstep.worker.team.meeting import MeetingPlace, session_in

#: Seconds between two looks whether a process has died: short, since its team waits for it at the next step.
POLL_S = 0.05

#: Restarts of a process that dies again and again: for hours, as long as its leader can compute without it.
MOST_RESTARTS = 1000


def default_processes() -> int:
    """Return how many processes a worker has by default: one per core that it may use."""
    return min(cores(), PROCESSES_LIMIT)


def team_arguments(folder: Path, process: int, processes: int) -> list[str]:
    """Return the flags of one process of a team, which meets in a folder and is led by process 0.

    The folder is made if it does not exist; its parent must be private.
    """
    if processes == 1 and not folder.exists():
        return ["--workers", "1"]
    if not folder.exists():
        folder.mkdir(mode=0o700)
        MeetingPlace.create(folder, processes)
    return ["--workers", str(processes), "--process", str(process), "--team", str(folder)]


def own_core(process: int, processes: int) -> AbstractContextManager[None]:
    """Keep a process of a team that has all cores on a core of its own, within the context."""
    # Otherwise one that is woken may share a core with another for milliseconds while a third is idle.
    return kept_to_core(process) if processes == len(core_numbers()) else nullcontext()


#: The place of the process that leads a team.
LEADER = ProcessPlace(Role.WORKER, 0)

#: How many looks, which take some ten seconds, a team waits for the processes that are expected of it.
FIRST_LOOKS = 200


@dataclass
class TeamSupervisor:
    """Starts processes of one team, restarts those that die, and ends all with their leader, if that is one of them."""

    crew: Crew
    #: The numbers of these processes in their team.
    numbers: Sequence[int]
    clock: Clock
    say: Callable[[str], None]
    #: Passes on what the leader reports.
    forward: Callable[[ChildReport], None]
    #: Lets so many seconds pass.
    pause: Callable[[float], object] = field(default_factory=lambda: Event().wait)
    #: Tells whether the team is over for another reason than the end of a leader here.
    is_over: Callable[[], bool] = lambda: False
    places: ProcessTable = field(default_factory=lambda: ProcessTable(MOST_RESTARTS))

    def run(self) -> int | None:
        """Return the exit code of the leader when it ends by itself, None if the team is over for another reason.

        Nothing is left running in any case.
        """
        try:
            self._start(ProcessPlace(Role.WORKER, number) for number in self.numbers)
            while True:
                # Before it is asked whether the team is over: its processes end after it.
                ends = self.crew.ends()
                if self.is_over():
                    return None
                if (code := self._code(ends)) is not None:
                    return code
                self.pause(POLL_S)
        finally:
            # An interrupt is deferred and not ignored: a command whose team changes would start processes again.
            with held_back():
                self.crew.end_all()

    def _start(self, places: Iterable[ProcessPlace]) -> None:
        for place in places:
            self.places.begin(place, self.clock.now())
            self.crew.begin(place)

    def _code(self, ends: Mapping[ProcessPlace, ProcessEnd]) -> int | None:
        """Restart processes that are due; return the exit code once the leader has ended."""
        leader = self.crew.processes.get(LEADER)
        has_ended = leader is not None and leader.has_ended()
        for report in [] if leader is None else leader.reports():
            self.forward(report)
        if leader is not None and has_ended and leader.code >= 0:
            return leader.code
        # If the run has ended or failed, the leader lets the others end first, a moment before it reports why.
        if leader is not None and any(end.code > 0 for end in ends.values()) and leader.wait(GRACE_S):
            return None
        for place, end in ends.items():
            self.places.end(place, end, self.clock.now())
            is_restarted = self.places.restart(place, self.clock.now()) is not None
            if end.code:
                outlook = "it is restarted" if is_restarted else "it is not restarted"
                self.say(f"{exit_message(self.crew.processes[place])}; {outlook}")
        if leader is not None and self.places.are_given_up([LEADER]):
            return 128 - leader.code  # as shells have it
        self._start(self.places.due(PlaceState.AWAITED, self.clock.now()))
        return None


class TeamView(msgspec.Struct, frozen=True):
    """A machine's team at one moment, as one of its commands sees it."""

    #: The folder in which its processes meet, None before a command leads it; and how many they are.
    folder: Path | None
    size: int
    #: The places that this command holds.
    held: tuple[int, ...]
    #: How the leader of another command has ended, None while that is not known.
    ended: Exit | None = None

    @property
    def numbers(self) -> tuple[int, ...]:
        """Those of the places that have a process by now."""
        return tuple(number for number in self.held if number < self.size)

    def text(self) -> str:
        """Return what this command does in the team; empty while that is not certain."""
        if not self.held:
            return "waiting: other commands have started the processes of this machine, and this one replaces them"
        if len(self.numbers) < len(self.held):
            return ""
        words = f"{len(self.numbers)} of the {self.size} processes of this machine"
        return f"this command has started {words}{', and leads them' if LEADER.number in self.held else ''}"


#: The folders in which a team meets, by number and size: a new one whenever the team has another size or leader.
_MEETING = re.compile(r"team-(?P<number>[0-9]+)-(?P<size>[0-9]+)")


@dataclass
class MachineTeam:
    """The one team of a machine in a run, of which each command holds places, and the command with place 0 leads it.

    Each place is a lock in a folder that the commands share, which the system releases when a command ends, however it
    ends. A command always holds the lowest places that it can get: so another leads the team at once if that of place
    0 ends, and no number is left out.
    """

    folder: SharedFolder
    #: How many places this command wants, and below which one.
    wanted: int
    limit: int
    say: Callable[[str], None]
    #: How many places are held soon, and the lowest that this command takes before: of the ranks of a launcher on one
    #: host, all come within seconds, and the first one is to lead them.
    expected: int = 1
    lowest: int = 0
    pause: Callable[[float], object] = field(default_factory=lambda: Event().wait)
    held: list[int] = field(default_factory=list)
    #: How often it has looked without finding a team.
    _looks: int = 0
    #: The folder that this command has made as the leader, and its size.
    _made: tuple[Path, int] | None = None
    #: The size that it saw last, while it leads.
    _seen: int = 0
    _locks: dict[int, FileLock] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def of(
        cls,
        run: str,
        wanted: int,
        limit: int,
        root: Path,
        say: Callable[[str], None],
        *,
        expected: int = 1,
        lowest: int = 0,
    ) -> Iterator["MachineTeam"]:
        """Take part in the team of a run, within the context, with the places that are free when it begins.

        Raises `SharingError` if its folder cannot be used.
        """
        sweep(root)
        name = hashlib.sha256(run.encode()).hexdigest()[:16]
        folder = SharedFolder.open_together(root, f"lockstep-{os.geteuid()}-0-{name}")
        team = cls(folder, wanted, limit, say, expected, lowest)
        try:
            team._take()
            yield team
        finally:
            for lock in team._locks.values():
                lock.close()
            folder.close()
            sweep(root)

    def run(self, supervise: Callable[[TeamView, Callable[[], bool]], int | None]) -> Exit:
        """Return how the leader has ended. `supervise` runs processes of a team until that has another view."""
        said = ""
        while True:
            view = self.look()
            if view.ended is not None:
                return view.ended
            # As if it were alone, a command that always was has nothing to say.
            is_alone = not said and len(view.held) == view.size
            if (text := view.text()) and text != said and not is_alone:
                self.say(said := text)
            if view.numbers and (code := supervise(view, functools.partial(self._is_past, view))) is not None:
                return Exit(code=code, reason="")
            self.pause(POLL_S)

    def _is_past(self, view: TeamView) -> bool:
        return self.look() != view

    def look(self) -> TeamView:
        """Take the places that are free, and return the view that follows."""
        self._take()
        # One that has just become the leader may have to do that because the run has ended.
        found = self._made or self._newest()
        self._looks = self._looks + 1 if found is None else FIRST_LOOKS
        ended = None if found is None or found == self._made else _end_of(found[0])
        if LEADER.number in self.held:
            found = self._led()
        path, size = found or (None, 0)
        return TeamView(path, size, tuple(self.held), ended)

    @property
    def _awaits_others(self) -> bool:
        """True as long as expected processes may still come: once a team has met, they have."""
        return self._looks < FIRST_LOOKS

    def _take(self) -> None:
        """Hold the lowest places that are free, as many as are wanted."""
        for number in range(self.lowest if self._awaits_others else 0, self.limit):
            if len(self.held) == self.wanted and number > self.held[-1]:
                break
            if number not in self.held and self._lock(number).acquire():
                self.held = sorted([*self.held, number])
                if len(self.held) > self.wanted:
                    self._lock(self.held.pop()).release()

    def _led(self) -> tuple[Path, int] | None:
        """Return where the team meets that this command leads: elsewhere once it had another size at two looks."""
        size = 0
        while self._is_held(size):
            size += 1
        # At the end of a run, the others may leave before the leader does.
        is_new = self._made is None or (self._made[1] != size and _end_of(self._made[0]) is None)
        is_whole = size >= self.expected or not self._awaits_others
        if is_new and is_whole and size == self._seen:
            self._made = self._make(size), size
        self._seen = size
        return self._made

    def _is_held(self, number: int) -> bool:
        if number in self.held:
            return True
        lock = self._lock(number)
        if not lock.acquire():
            return True
        lock.release()
        return False

    def _make(self, size: int) -> Path:
        """Make a folder in which a team of that size meets, whole from its first moment."""
        number = 1 + max((int(match["number"]) for match in self._meetings()), default=0)
        made = Path(tempfile.mkdtemp(dir=self.folder.path))
        MeetingPlace.create(made, size)
        return made.rename(self.folder.path / f"team-{number}-{size}")

    def _newest(self) -> tuple[Path, int] | None:
        match = max(self._meetings(), key=lambda match: int(match["number"]), default=None)
        return None if match is None else (self.folder.path / match[0], int(match["size"]))

    def _meetings(self) -> list[re.Match[str]]:
        names = os.listdir(self.folder.path)
        return [match for name in names if (match := _MEETING.fullmatch(name)) is not None]

    def _lock(self, number: int) -> FileLock:
        """Return the lock of a place."""
        if number not in self._locks:
            path = self.folder.path / f"place-{number}"
            self._locks[number] = FileLock(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        return self._locks[number]


def _end_of(meeting: Path) -> Exit | None:
    """Return how the leader of a team has ended; None if it has not, or was interrupted, so that another may lead."""
    session = session_in(meeting)
    if session is None or session.welcome is not None or session.code == INTERRUPTED:
        return None
    return Exit(code=session.code, reason=session.reason)
