"""Where a run's processes are started: the port, its implementation for this machine, and a run's private folder."""

import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lockstep.common.protocol.messages import CallbackDecision, Status
from lockstep.common.runtime.environment import cores, keep_to_core
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.transport.auth.credentials import Token
from lockstep.common.transport.transports import TRANSPORTS
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.child import Child, ProcessLog
from lockstep.launch.client import StatusClient
from lockstep.launch.endpoints import make_token
from lockstep.runs.launch_config import Launch

#: Stands in a command for the private folder of the process that it starts, on whatever machine that is.
HERE = "{here}"


class WatchedProcess(Protocol):
    """A process of a run that we started, on this machine or another."""

    name: str
    log: ProcessLog

    @property
    def pid(self) -> int: ...

    @property
    def code(self) -> int:
        """The exit code of one that has ended, negative for a signal."""
        ...

    def named(self) -> str:
        """Return its name, number and place."""
        ...

    def first_line(self) -> str:
        """Wait for the first line of its standard output; empty if it ended before."""
        ...

    def rest(self) -> bytes:
        """Return what one that has ended has written to its standard output after the first line, once."""
        ...

    def has_ended(self) -> bool: ...

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; return whether it came in time."""
        ...

    def send(self, number: signal.Signals) -> None:
        """Send a signal to one that still runs."""
        ...

    def kill_on_purpose(self) -> None:
        """Kill one that works as it should."""
        ...

    def end(self, grace_s: float) -> None:
        """Wait for the end, and kill after `grace_s` seconds; free what is held of the process."""
        ...

    def lived_s(self, born_s: float, now: float) -> float:
        """Return for how many seconds it lived, if its death was its own."""
        ...

    def how_it_ended(self) -> str:
        """Return its end in words."""
        ...


class Observer(Protocol):
    """Asks the server for the status of its run, and sends it what callbacks decide."""

    def ask(self, timeout_s: float) -> Status | None:
        """Return how the run stands, None if no answer came in time."""
        ...

    def decide(self, decision: CallbackDecision) -> None:
        """Send the server whether the run continues after an epoch."""
        ...

    def close(self) -> None: ...


class ProcessBackend(Protocol):
    """The machines on which a run's processes are started."""

    @property
    def has_external_workers(self) -> bool:
        """Whether workers that we did not start take part as well."""
        ...

    def worker_count(self, launch: Launch) -> int:
        """Return how many workers are to be started here."""
        ...

    def start_server(self, arguments: list[str], address: str, folder: Path, numerics: Numerics) -> WatchedProcess:
        """Start the first server, at an address if there is one to keep; its `first_line` says where it listens.

        `HERE` stands in the arguments for a folder of its own, to which `folder`'s job file has been brought; its log
        goes to `folder`.
        """
        ...

    def start_shard(self, number: int, server: str, folder: Path, numerics: Numerics) -> WatchedProcess:
        """Start another server, for the one at the address `server`."""
        ...

    def start_worker(self, number: int, server: str, folder: Path, numerics: Numerics) -> WatchedProcess:
        """Start a worker of the server at an address."""
        ...

    def observer(self, address: str, server: WatchedProcess) -> Observer:
        """Return what asks that server."""
        ...


#: The name of the job file in the private folder of a run.
JOB_FILE = "job.toml"


@dataclass
class LocalBackend:
    """This machine alone."""

    launch: Launch
    has_external_workers: bool = field(default=False, init=False)
    #: What our processes show one another, where others can reach them.
    _token: Token | None = field(default=None, init=False)

    def worker_count(self, launch: Launch) -> int:
        return launch.workers

    def start_server(self, arguments: list[str], address: str, folder: Path, numerics: Numerics) -> WatchedProcess:
        bind = address or self._bind("server", folder)
        return start_here("the server", [*arguments, "--bind", bind], folder, "server.log", numerics)

    def start_shard(self, number: int, server: str, folder: Path, numerics: Numerics) -> WatchedProcess:
        bind = self._bind(f"shard-{number}", folder)
        arguments = ["shard", server, "--supervised", HERE, "--bind", bind]
        return start_here("a shard", arguments, folder, f"shard-{number}.log", numerics)

    def start_worker(self, number: int, server: str, folder: Path, numerics: Numerics) -> WatchedProcess:
        arguments = ["worker", server, "--supervised", HERE]
        worker = start_here("a worker", arguments, folder, f"worker-{number}.log", numerics)
        if self.launch.workers == cores():
            # Otherwise one that is woken may share a core with another for milliseconds while a third is idle.
            keep_to_core(worker.pid, number)
        return worker

    def observer(self, address: str, server: WatchedProcess) -> Observer:
        return StatusClient(dial(address, credential=self._token))

    def _bind(self, name: str, folder: Path) -> str:
        transport = TRANSPORTS[self.launch.transport]
        if transport.needs_token:
            # Other users cannot read the folder, where our own processes find the token.
            self._token = make_token(folder)
        return transport.local_address(folder, name)


def start_here(name: str, arguments: list[str], folder: Path, log: str, numerics: Numerics) -> Child:
    """Start one of our commands on this machine, with `folder` as its own."""
    words = [word.replace(HERE, str(folder)) for word in arguments]
    return Child.start(name, words, folder / log, numerics=numerics)


#: Longest folder name below which a socket's path stays within the system's 107 bytes.
FOLDER_LIMIT = 80

#: How the folder of a process begins that may be killed at any time: with its number, so that others can find out.
_OWNED = re.compile(r"lockstep-of-([0-9]+)-")


def private_folder() -> Path:
    """Return a new folder."""
    return _made("lockstep-")


def own_folder() -> Path:
    """Return a new folder of this process, and remove those of processes that were killed."""
    folder = _made(f"lockstep-of-{os.getpid()}-")
    for path in folder.parent.glob("lockstep-of-*"):
        found = _OWNED.match(path.name)
        if found is not None and not _is_running(int(found[1])):
            # Another user's stays: we may not.
            shutil.rmtree(path, ignore_errors=True)
    return folder


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def _made(prefix: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    if len(str(folder).encode()) <= FOLDER_LIMIT:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
