"""Starts one of our commands on the machine where it is, and watches it for somebody elsewhere.

What it is asked and answers is of plain types, since it travels as the engine that placed it sees fit; knows no engine.
"""

import os
import platform
import shutil
import signal
import socket
import sys
from pathlib import Path

import msgspec

from lockstep.common.errors import LockstepError, NumericsError, UnreachableError
from lockstep.common.protocol.fingerprint import code_digest
from lockstep.common.protocol.messages import CallbackDecision
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.runtime.version import VERSION
from lockstep.common.transport.auth.keys import KeyFolder
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.child import ERROR_MARK, Child
from lockstep.launch.client import StatusClient
from lockstep.launch.numerics import demand_numerics
from lockstep.launch.process_backend import HERE, own_folder

#: The exit code of a command that could not be begun.
USAGE = 2

#: Name of a server's folder of keys below its private folder.
KEYS = "keys"


class LaunchAgent:
    """One process and its private folder; without a process it holds nothing."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._child: Child | None = None
        self._observer: StatusClient | None = None
        #: Why there is no child, and how much of the log was returned.
        self._fault = ""
        self._returned_bytes = 0

    def about(self) -> dict[str, str]:
        """Return what has to be the same on all machines, and what distinguishes this one from the others."""
        return {
            "lockstep": VERSION,
            "code": code_digest(),
            "python": sys.executable,
            "host": platform.node() or "unknown",
        }

    def address_towards(self, host: str) -> str:
        """Return this machine's address for `host`; empty if no way leads there."""
        try:
            return address_towards(host)
        except LockstepError:
            return ""

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
    ) -> tuple[int, str]:
        """Start `lockstep` in the folder `working`, with `files` in its own; return its pid and this machine's name.

        If it cannot be started the pid is 0, and `poll` returns why.
        `HERE` stands for its own folder in the arguments.
        """
        # An engine may kill this process, and with it the child, which would have removed the folder.
        folder = self._folder = own_folder()
        try:
            for path, text in files.items():
                _write(folder / path, text)
            if not Path(working).is_dir():
                raise FileNotFoundError(2, f"no folder {working!r} here, where the run was started elsewhere")
            words = [word.replace(HERE, str(folder)) for word in arguments]
            demand_numerics(numerics)
            self._child = Child.start(name, words, folder / "log", Path(working), numerics)
        except (OSError, NumericsError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            self._fault = f"{ERROR_MARK}{platform.node()}: {why or error}\n"
            return 0, platform.node() or "unknown"
        return self._child.pid, platform.node() or "unknown"

    def first_line(self) -> str:
        """Wait for the first line of its standard output; empty if it ended before."""
        return "" if self._child is None else self._child.first_line()

    def rest(self) -> bytes:
        """Return what one that has ended has written to its standard output after the first line, once."""
        return b"" if self._child is None else self._child.rest()

    def poll(self) -> tuple[int | None, bytes]:
        """Return its exit code, None while it runs, and what it has written since the last call."""
        if self._child is None:
            words, self._fault = self._fault, ""
            return USAGE, words.encode()
        # Before its words are read, so that the last ones are among them.
        code = self._child.code if self._child.has_ended() else None
        with self._child.log.path.open("rb") as file:
            file.seek(self._returned_bytes)
            words_read = file.read()
        self._returned_bytes += len(words_read)
        return code, words_read

    def status(self, address: str, wait_s: float) -> bytes | None:
        """Return the status of the server at `address`, which is here, as JSON; None if it does not answer."""
        answer = self._asking(address).ask(wait_s)
        return None if answer is None else msgspec.json.encode(answer)

    def decide(self, address: str, epoch: int, stops: bool) -> None:
        """Answer a run that pauses between two epochs."""
        self._asking(address).decide(CallbackDecision(epoch=epoch, stops=stops))

    def _asking(self, address: str) -> StatusClient:
        if self._observer is None:
            assert self._folder is not None  # a server was started in it
            credential = KeyFolder(self._folder / KEYS).server_key().client()
            self._observer = StatusClient(dial(address, credential=credential))
        return self._observer

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self._child is not None:
            self._child.send(signal.Signals(number))

    def end(self, grace_s: float) -> None:
        """Wait for its end, kill it after `grace_s` seconds, and leave nothing behind."""
        if self._observer is not None:
            self._observer.close()
        if self._child is not None:
            self._child.end(grace_s)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    target.touch(mode=0o600)
    target.write_text(text, encoding="utf-8")


#: Any port: nothing is sent to it.
PORT = 9


def address_towards(host: str) -> str:
    """Return the address of the interface that leads to `host`; `UnreachableError` if none does.

    The system is asked for the way, by a UDP socket that sends nothing. The own host name would say less: it often
    leads to loopback, or to another of several networks.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as asking:
            asking.connect(target)
            return str(asking.getsockname()[0])
    except OSError as error:
        raise UnreachableError(
            f"no interface of this machine leads to {host!r} ({error.strerror or error}): expected one network that "
            "all machines of the run are on"
        ) from None


def bracketed(host: str) -> str:
    """Return a host as addresses have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
