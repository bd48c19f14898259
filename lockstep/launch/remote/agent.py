"""Starts one of our commands on the machine where it is, and watches it for somebody elsewhere.

What it is asked and answers is of plain types, since it travels as the engine that placed it sees fit; knows no engine.
"""

import os
import platform
import signal
import sys
import tempfile
from pathlib import Path

from lockstep.common.errors import NumericsError
from lockstep.common.protocol.fingerprint import code_digest
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.runtime.version import VERSION
from lockstep.common.transport.auth.keys import KeyFolder
from lockstep.common.transport.port import ClientPort
from lockstep.common.transport.shared_memory.folder import SharedFolder, sweep
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.child import ERROR_MARK, USAGE, Child
from lockstep.launch.numerics import demand_numerics

#: Name of a server's folder of keys below its private folder.
KEYS = "keys"

#: The number of a process and the name of its machine; what it has written since; its exit code, None while it runs.
News = tuple[int, str, bytes, int | None]


class LaunchAgent:
    """One process and its private folder; without a process it holds nothing."""

    def __init__(self) -> None:
        self._folder: SharedFolder | None = None
        self._child: Child | None = None
        self._port: ClientPort | None = None
        #: Why there is no child.
        self._fault = ""

    def about(self) -> dict[str, str]:
        """Return what has to be the same on all machines, and what distinguishes this one from the others."""
        return {"lockstep": VERSION, "code": code_digest(), "python": sys.executable, "host": host_name()}

    def obstacle(self, folder: str, name: str, text: str) -> str:
        """Return why this machine cannot use a folder with that text in a file, empty if it can."""
        try:
            if (Path(folder) / name).read_text(encoding="utf-8") != text:
                return "has another folder of that name"
        except OSError as error:
            return f"cannot read it ({error.strerror})"
        return "" if os.access(folder, os.W_OK | os.X_OK) else "may not write to it"

    def start(
        self, name: str, arguments: list[str], files: dict[str, str], working: str, numerics: Numerics = "native"
    ) -> News:
        """Start `lockstep` in the folder `working`, with `files` in its own; return its news.

        If it cannot be started its number is 0, and what it has written says why.
        """
        # An engine may kill this process, and with it the child, which would have removed it: the next one does.
        root = Path(tempfile.gettempdir())
        sweep(root)
        self._folder = SharedFolder.create(root)
        folder = self._folder.path
        try:
            for path, text in files.items():
                _write(folder / path, text)
            if not Path(working).is_dir():
                raise FileNotFoundError(2, f"no folder {working!r} here, where the run was started elsewhere")
            demand_numerics(numerics)
            self._child = Child.start(name, arguments, folder / "log", Path(working), numerics)
        except (OSError, NumericsError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            self._fault = f"{ERROR_MARK}{host_name()}: {why or error}\n"
        return self.news(0)

    def first_line(self) -> str:
        """Wait for the first line of its standard output; empty if it ended before."""
        return "" if self._child is None else self._child.first_line()

    def rest(self) -> bytes:
        """Return what one that has ended has written to its standard output after the first line, once."""
        return b"" if self._child is None else self._child.rest()

    def news(self, known_bytes: int) -> News:
        """Return how it is, and what it has written to its log after so many bytes."""
        if self._child is None:
            return 0, host_name(), self._fault.encode()[known_bytes:], USAGE
        # Before its words are read, so that the last ones are among them.
        code = self._child.code if self._child.has_ended() else None
        return self._child.pid, host_name(), self._child.log.path.read_bytes()[known_bytes:], code

    def tell_server(self, address: str, frames: list[bytes]) -> None:
        """Send a message to the server at `address`, which is the process here."""
        if self._port is None:
            assert self._folder is not None  # the server was started in it
            credential = KeyFolder(self._folder.path / KEYS).server_key().client()
            self._port = dial(address, credential=credential)
        self._port.send(frames)

    def hear_server(self, timeout_s: float) -> list[bytes] | None:
        """Return the server's next message, None if none comes in time."""
        frames = None if self._port is None else self._port.receive(timeout_s)
        return None if frames is None else [bytes(frame) for frame in frames]

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self._child is not None:
            self._child.send(signal.Signals(number))

    def end(self, grace_s: float) -> None:
        """Wait for its end, kill it after `grace_s` seconds, and leave nothing behind."""
        if self._port is not None:
            self._port.close()
        if self._child is not None:
            self._child.end(grace_s)
        if self._folder is not None:
            self._folder.remove()


def host_name() -> str:
    """Return what this machine is called."""
    return platform.node() or "unknown"


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    target.touch(mode=0o600)
    target.write_text(text, encoding="utf-8")
