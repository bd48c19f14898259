"""The parts of a run on a cluster that know no engine: places for teams on its nodes, and the agent that starts a team.

The agent watches its team for a process on another machine. Questions and answers are of plain types, because they
travel as the engine that placed the agent sees fit.
"""

import os
import platform
import signal
import tempfile
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lockstep.common.transport.auth.keys import SERVER, write_new
from lockstep.common.transport.shared_memory.folder import SharedFolder, sweep
from lockstep.launch.supervision.channel import EndReport
from lockstep.launch.supervision.child import HERE, Child
from lockstep.launch.supervision.restarts import USAGE

#: A core that a run has on a node: which group of cores it belongs to, and which of them it is.
Core = tuple[int, int]


@dataclass
class TeamPlaces:
    """The places for teams that are free now."""

    #: Most processes of a team.
    most: int
    #: The cores of each node at the last look.
    _known: Mapping[str, Set[Core]] = field(default_factory=dict)
    _free: list[tuple[str, list[Core]]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Tell whether there is no place for another team."""
        return not self._free

    def look(self, cores: Mapping[str, Set[Core]], held: Set[Core]) -> None:
        """Take note of the run's cores on each node, of which teams have some.

        A node counts once it has the same cores as at the look before: a cluster gives them one after the other, and
        the first of them would be a team of its own.
        """
        settled = {node: sorted(found - held) for node, found in cores.items() if self._known.get(node) == found}
        self._known = cores
        self._free = [
            (node, free[first : first + self.most])
            for node, free in settled.items()
            for first in range(0, len(free), self.most)
        ]

    def take(self) -> tuple[str, list[Core]] | None:
        """Return a node and the cores there of the next team, None if there is no place for it."""
        return self._free.pop(0) if self._free else None


#: The number of a process and the name of its machine; what it has written since, and the lines that it has reported
#: since; its exit code, None while it runs.
News = tuple[int, str, bytes, list[bytes], int | None]


class LaunchAgent:
    """A team, below the process that starts and restarts those of the team, and their private folder."""

    def __init__(self, name: str, arguments: list[str], key: str, working: str) -> None:
        """Start `lockstep` in the folder `working`, with the text of a key.

        If it cannot be started its number is 0, and what it has written says why.
        """
        # An engine may kill this process, and with it the child, which would have removed it: the next one does.
        root = Path(tempfile.gettempdir())
        sweep(root)
        self._folder = SharedFolder.create(root)
        self._child: Child | None = None
        self._log = self._folder.path / "log"
        self._reports = list[bytes]()
        try:
            write_new(self._folder.path / SERVER, key, 0o600)
            if not Path(working).is_dir():
                raise FileNotFoundError(2, f"no folder {working!r} here, where the run was started elsewhere")
            self._child = Child.start(name, [*arguments, "--key", f"{HERE}/{SERVER}"], self._log, Path(working))
        except OSError as error:
            text = f"{host_name()}: {error.strerror or error}"
            self._log.write_text(f"error: {text}\n", encoding="utf-8")
            self._reports.append(msgspec.json.encode(EndReport(text=text)))

    def news(self, known_bytes: int, known_reports: int) -> News:
        """Return how it is, and what it has written and reported after so many bytes of its log and so many reports."""
        if self._child is None:
            return 0, host_name(), self._log.read_bytes()[known_bytes:], self._reports[known_reports:], USAGE
        # Before its words are read, so that the last ones are among them.
        code = self._child.code if self._child.has_ended() else None
        self._reports += map(msgspec.json.encode, self._child.reports())
        words = self._log.read_bytes()[known_bytes:]
        return self._child.pid, host_name(), words, self._reports[known_reports:], code

    def send(self, number: int) -> None:
        """Send a signal to all processes of the team."""
        if self._child is not None and not self._child.has_ended():
            signal_family(self._child.pid, number)

    def end(self, known_bytes: int) -> bytes:
        """Kill what still runs, and leave nothing behind; return the log after so many bytes."""
        if self._child is not None:
            self._child.end(0.0)
        words = self._log.read_bytes()[known_bytes:]
        self._folder.remove()
        return words


def host_name() -> str:
    """Return what this machine is called."""
    return platform.node() or "unknown"


def signal_family(pid: int, number: int) -> None:
    """Send a signal to a child of this process and to all that it has started.

    The child is stopped meanwhile: otherwise it would restart a process that the signal ends, or start one that the
    signal misses.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        # Until it has stopped, or ended.
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        for one in (*children_of(pid), pid):
            with suppress(ProcessLookupError):
                os.kill(one, number)
        if number != signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run, and those that these have started."""
    try:
        started = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*started, *(each for one in started for each in children_of(one))]
