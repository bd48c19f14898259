"""Starts a team on the machine where it is, and watches it for somebody elsewhere.

What it is asked and answers is of plain types, since it travels as the engine that placed it sees fit; knows no engine.
"""

import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lockstep.common.errors import NumericsError
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.transport.auth.keys import write_new
from lockstep.common.transport.shared_memory.folder import SharedFolder, sweep
from lockstep.launch.child import ERROR_MARK, HERE, USAGE, Child
from lockstep.launch.numerics import demand_numerics

#: The name of the key in the team's private folder.
KEY = "worker.key"

#: The number of a process and the name of its machine; what it has written since; its exit code, None while it runs.
News = tuple[int, str, bytes, int | None]


class LaunchAgent:
    """A team, below the process that starts and restarts those of the team, and their private folder."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        key: str,
        working: str,
        numerics: Numerics = "native",
        check: Callable[[Numerics], None] = demand_numerics,
    ) -> None:
        """Start `lockstep` in the folder `working`, with the text of a key.

        If it cannot be started its number is 0, and what it has written says why; `check` raises `NumericsError` if
        this machine cannot have the numerics.
        """
        # An engine may kill this process, and with it the child, which would have removed it: the next one does.
        root = Path(tempfile.gettempdir())
        sweep(root)
        self._folder = SharedFolder.create(root)
        self._child: Child | None = None
        self._log = self._folder.path / "log"
        try:
            write_new(self._folder.path / KEY, key, 0o600)
            if not Path(working).is_dir():
                raise FileNotFoundError(2, f"no folder {working!r} here, where the run was started elsewhere")
            check(numerics)
            self._child = Child.start(name, [*arguments, "--key", f"{HERE}/{KEY}"], self._log, Path(working), numerics)
        except (OSError, NumericsError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            self._log.write_text(f"{ERROR_MARK}{host_name()}: {why or error}\n", encoding="utf-8")

    def news(self, known_bytes: int) -> News:
        """Return how it is, and what it has written to its log after so many bytes."""
        if self._child is None:
            return 0, host_name(), self._log.read_bytes()[known_bytes:], USAGE
        # Before its words are read, so that the last ones are among them.
        code = self._child.code if self._child.has_ended() else None
        return self._child.pid, host_name(), self._log.read_bytes()[known_bytes:], code

    def send(self, number: int) -> None:
        """Send a signal to all processes of the team."""
        if self._child is not None and not self._child.has_ended():
            for pid in team_of(self._child.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

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


def team_of(pid: int) -> list[int]:
    """Return the processes of a team in the order in which signals reach them: first the one that restarts the others.

    In any other order, it would restart what a signal has just ended.
    """
    return [pid, *children_of(pid)]


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
