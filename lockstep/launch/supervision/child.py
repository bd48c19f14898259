"""A process of a run that this one has started: its reports, its log, and its end; and one of this machine."""

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import child_environment
from lockstep.launch.supervision.channel import STDERR, ChildReport, EndReport, ListeningReport, ReportReader
from lockstep.launch.supervision.restarts import ProcessEnd, ProcessPlace, Role
from lockstep.launch.supervision.template import KILLED_S, ForkedProcess, ForkRequest, ProcessTemplate

#: How the names of logs end.
LOG = ".log"

#: Seconds that processes have for an orderly end: together with the kill after it, well below five.
GRACE_S = 2.0

#: Most lines of a log that are shown if its process has reported no error.
TAIL_LINES = 20

#: By signal, a cause that a user can remove.
HINTS: Mapping[int, str] = {
    signal.SIGSEGV: ": a PyTorch model that writes to its weights by way of .data ends like that, because "
    "their memory is read only"
}


@dataclass
class ProcessLog:
    """One process's part of a log file; before it is the output of the processes that it replaces."""

    path: Path
    #: Bytes before its part.
    begin: int = 0

    @classmethod
    def at_end_of(cls, path: Path) -> "ProcessLog":
        """Return the log of a process that is about to write; the file is made if it is missing."""
        with path.open("ab") as file:
            return cls(path, file.tell())

    def add(self, words: bytes) -> None:
        """Append what a process has written elsewhere."""
        with self.path.open("ab") as file:
            file.write(words)

    def tail(self) -> str:
        """Return the last traceback, or else the last lines: for a person, if the process has reported no error."""
        text = self.path.read_bytes()[self.begin :].decode("utf-8", "replace")
        traceback = text.rfind("Traceback (most recent call last)")
        return (text[traceback:] if traceback >= 0 else "\n".join(text.splitlines()[-TAIL_LINES:])).strip()


@dataclass
class WatchedProcess(ABC):
    """A process of a run that this one has started, on this machine or another."""

    name: str
    log: ProcessLog
    #: Its address, empty until it has reported that.
    address: str = field(default="", init=False)
    #: The error that it has reported.
    failure: EndReport | None = field(default=None, init=False)
    #: Reports that were read, and not returned by `reports` yet.
    _unread: list[ChildReport] = field(default_factory=list, init=False)
    #: Whether we killed it, or its machine is gone, so that its death says nothing about it.
    is_killed_on_purpose: bool = field(default=False, init=False)
    is_lost: bool = field(default=False, init=False)

    @property
    @abstractmethod
    def pid(self) -> int:
        """The number of the process on its machine, 0 before it starts."""

    @property
    @abstractmethod
    def code(self) -> int:
        """The exit code of one that has ended, negative for a signal."""

    @abstractmethod
    def place(self) -> str:
        """Return its number, and its machine if that is not this one."""

    @abstractmethod
    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; return whether it came in time."""

    @abstractmethod
    def send(self, number: signal.Signals) -> None:
        """Send a signal to one that still runs."""

    @abstractmethod
    def end(self, grace_s: float) -> None:
        """Wait for the end, and kill after `grace_s` seconds; free its pipes."""

    @abstractmethod
    def read(self, timeout_s: float | None) -> list[ChildReport] | None:
        """Return the reports since the last call, None if none can come any more.

        Wait for some for so long, and with None until there are some.
        """

    def take(self, timeout_s: float | None = 0.0) -> bool:
        """Take the reports that have come; return whether there can be more. Keep where it listens and why it ended."""
        found = self.read(timeout_s)
        for report in found or ():
            self._unread.append(report)
            if isinstance(report, ListeningReport):
                self.address = report.address
            elif isinstance(report, EndReport):
                self.failure = report
        return found is not None

    def listens(self) -> str:
        """Wait until it has reported where it listens, and return that; empty if it has ended before."""
        while not self.address and self.take(None):
            continue
        return self.address

    def reports(self) -> list[ChildReport]:
        """Return the reports since the last call."""
        self.take()
        found, self._unread = self._unread, []
        return found

    def has_failed(self) -> bool:
        """Return whether it has reported an error."""
        self.take()
        return self.failure is not None

    def last_message(self) -> str:
        """Return the error that it has reported, or else the end of its log."""
        self.take()
        return self.failure.text if self.failure is not None else self.log.tail()

    def named(self) -> str:
        """Return its name, number and place."""
        return f"{self.name} ({self.place()})"

    def has_ended(self) -> bool:
        """Return whether it is gone, as far as is known."""
        return self.wait(0.0)

    def kill_on_purpose(self) -> None:
        """Kill one that works as it should."""
        self.is_killed_on_purpose = True
        self.send(signal.SIGKILL)

    def process_end(self) -> ProcessEnd:
        """Return how it has ended."""
        is_excused = self.is_killed_on_purpose or self.is_lost
        return ProcessEnd(code=self.code, has_reported=self.has_failed(), is_excused=is_excused)

    def how_it_ended(self) -> str:
        """Return its end in words."""
        if self.is_lost:
            return "is gone with its node"
        code = self.code
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was killed by {signal.Signals(-code).name}{HINTS.get(-code, '')}"


def exit_message(child: WatchedProcess) -> str:
    """Return how a process ended, with its last message if there is one."""
    message = child.last_message() if child.code > 0 else ""
    return f"{child.named()} {child.how_it_ended()}{message and ': '}{message}"


#: In a command, the place of the private folder of the process, on any machine.
HERE = "{here}"


@dataclass
class Child(WatchedProcess):
    """One child process; it ends by itself when our end of its standard input closes."""

    process: subprocess.Popen[bytes] | ForkedProcess
    reader: ReportReader
    #: Our end of its standard input, -1 once it is closed.
    lifeline: int
    #: Whether its reports are not read any more.
    is_closed: bool = False

    @classmethod
    def start(
        cls,
        name: str,
        arguments: list[str],
        log: Path,
        folder: Path | None = None,
        template: ProcessTemplate | None = None,
        *,
        is_shown: bool = False,
    ) -> "Child":
        """Start `lockstep` with these arguments in `folder`, or where we are; its standard error is added to `log`.

        If it is shown, its standard error is ours. `HERE` in the arguments is the folder of the log. The process is
        forked from the template, if there is one.
        """
        process_log = ProcessLog.at_end_of(log)
        words = [word.replace(HERE, str(log.parent)) for word in arguments]
        stdin, lifeline = os.pipe()
        reports, stdout = os.pipe()
        try:
            with log.open("ab") as errors:
                streams = (stdin, stdout, STDERR if is_shown else errors.fileno())
                request = ForkRequest(words, "" if folder is None else str(folder))
                process = (None if template is None else template.fork(request, streams)) or _start(request, streams)
        except BaseException:
            os.close(lifeline)
            os.close(reports)
            raise
        finally:
            os.close(stdin)
            os.close(stdout)
        return cls(name, process_log, process, ReportReader(reports), lifeline)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int:
        # One that was killed, and that the system holds for a while.
        return -signal.SIGKILL if self.process.returncode is None else self.process.returncode

    def place(self) -> str:
        return f"pid {self.pid}"

    def read(self, timeout_s: float | None) -> list[ChildReport] | None:
        return self.reader.read(timeout_s)

    def wait(self, timeout_s: float) -> bool:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, grace_s: float) -> None:
        if not self.wait(grace_s):
            self.process.kill()
            self.wait(KILLED_S)
        self.cut_lifeline()
        if not self.is_closed:
            self.take()
            self.is_closed = self.reader.is_at_end = True
            os.close(self.reader.descriptor)

    def cut_lifeline(self) -> None:
        """Close our end of its standard input, so that it ends by itself."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1


def _start(request: ForkRequest, streams: tuple[int, int, int]) -> subprocess.Popen[bytes]:
    """Start a process without a template."""
    stdin, stdout, stderr = streams
    return subprocess.Popen(
        # -P: the working folder is not on the path, where a `lockstep.py` of the user's would take our place.
        [sys.executable, "-P", "-m", "lockstep", *request.words],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=request.folder or None,
        env=dict(child_environment()),
        # Ctrl-C in a terminal reaches the whole foreground group: we end the children ourselves, in order.
        start_new_session=True,
    )


@dataclass
class Crew:
    """The processes of a run, or of a team: the current process of each place, or its last one."""

    #: Starts the process of a place, here or elsewhere.
    start: Callable[[ProcessPlace], WatchedProcess]
    processes: dict[ProcessPlace, WatchedProcess] = field(default_factory=dict)
    #: The places whose process has not been seen to end.
    _running: set[ProcessPlace] = field(default_factory=set)

    def begin(self, place: ProcessPlace) -> WatchedProcess:
        """Start the process of a place."""
        # The ended process may hold a core of a cluster, for which the next process waits.
        self.stop(place)
        self.processes[place] = self.start(place)
        self._running.add(place)
        return self.processes[place]

    def stop(self, place: ProcessPlace) -> None:
        """Kill the process of a place, if there is one, and free all that is held for it."""
        if place in self.processes:
            self.processes[place].end(0.0)

    def at(self, role: Role) -> list[WatchedProcess]:
        """Return the processes of a role."""
        return [process for place, process in self.processes.items() if place.role is role]

    def runs(self, place: ProcessPlace) -> bool:
        """Return whether the process of a place has not been seen to end."""
        return place in self._running

    def has_news(self) -> bool:
        """Return whether `ends` has something to return."""
        return any(self.processes[place].has_ended() for place in self._running)

    def ends(self) -> dict[ProcessPlace, ProcessEnd]:
        """Take the reports of all, and return how processes have ended since the last call, each once."""
        # In the order of their first starts: what follows from the end of the server is seen with it.
        ended = [place for place in self.processes if self.runs(place) and self.processes[place].has_ended()]
        self._running.difference_update(ended)
        for process in self.processes.values():
            process.take()
        return {place: self.processes[place].process_end() for place in ended}

    def end_all(self) -> None:
        """End all processes: all are asked at once, share the time of grace, and are killed after it."""
        clock = SystemClock()
        for process in self.processes.values():
            process.send(signal.SIGTERM)
        deadline = clock.now() + GRACE_S
        for process in self.processes.values():
            process.end(max(0.0, deadline - clock.now()))
