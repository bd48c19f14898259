"""The machines of a run's processes: the port, its implementation for this machine, and a run's private folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lockstep.common.protocol.messages import PROCESSES_LIMIT
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.environment import core_numbers, keep_to_core
from lockstep.common.transport.shared_memory.folder import SharedFolder, sweep
from lockstep.common.transport.transports import TRANSPORTS
from lockstep.launch.endpoints import make_token
from lockstep.launch.lifetime import uninterrupted
from lockstep.launch.supervision.child import LOG, Child, WatchedProcess
from lockstep.launch.supervision.restarts import ProcessPlace, Role
from lockstep.launch.supervision.template import ProcessTemplate
from lockstep.launch.team import team_arguments


class ProcessBackend(Protocol):
    """The machines on which a run's processes are started."""

    @property
    def has_external_workers(self) -> bool:
        """True if workers that we did not start take part as well."""
        ...

    @property
    def keys(self) -> Path | None:
        """The folder of the run's keys; None if its processes have a token in its private folder, or show nothing."""
        ...

    @property
    def workers(self) -> int:
        """The number of processes started here that compute."""
        ...

    @property
    def team_size(self) -> int:
        """The size of a team: so many consecutive processes form one, and the first of them leads it."""
        ...

    def start(self, place: ProcessPlace, words: list[str], folder: Path, address: str) -> WatchedProcess:
        """Start a server or a shard on this machine, or a process that computes, or a team of these.

        `words` are the arguments of `lockstep`, in which `HERE` stands for a private folder of the process; its keys,
        and its address or its place in a team, are added. A server has to listen at `address` again, or at any if that
        is empty. Its log goes to `folder`, in which the job file is.
        """
        ...


@dataclass
class LocalBackend:
    """This machine alone."""

    launch: RunOptions
    #: The process from which the processes of the run are forked, None to start an interpreter for each.
    template: ProcessTemplate | None = None
    has_external_workers: bool = field(default=False, init=False)
    workers: int = field(init=False)
    team_size: int = field(init=False)
    keys: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.workers = self.launch.workers
        # Audited work is computed again by another worker, so there has to be more than one.
        self.team_size = 1 if self.launch.audit else max(1, min(self.workers, PROCESSES_LIMIT))

    def start(self, place: ProcessPlace, words: list[str], folder: Path, address: str) -> WatchedProcess:
        is_worker = place.role is Role.WORKER
        added = self._team(place.number, folder) if is_worker else ["--bind", address or self._bind(place.stem, folder)]
        child = start_here(place, [*words, *added], folder, self.template)
        if is_worker and self.team_size == 1 and self.workers == len(core_numbers()):
            # The processes of a team do this themselves.
            keep_to_core(child.pid, place.number)
        return child

    def _team(self, number: int, folder: Path) -> list[str]:
        team, process = divmod(number, self.team_size)
        processes = min(self.team_size, self.workers - team * self.team_size)
        return team_arguments(folder / f"team-{team}", process, processes)

    def _bind(self, name: str, folder: Path) -> str:
        transport = TRANSPORTS[self.launch.transport]
        if transport.needs_token:
            # Other users cannot read the folder, where our own processes find the token.
            make_token(folder)
        return transport.local_address.format(folder=folder, name=name)


def start_here(place: ProcessPlace, words: list[str], folder: Path, template: ProcessTemplate | None = None) -> Child:
    """Start the process of a place on this machine; fork it from the template, if there is one."""
    return Child.start(place.name, words, folder / f"{place.stem}{LOG}", template=template)


#: Longest folder name below which a socket's path stays within the system's 107 bytes.
FOLDER_LIMIT = 80


def private_folder(root: Path | None = None) -> SharedFolder:
    """Return a new folder for files and sockets in `root`, by default that of temporary files.

    Its maker removes it by `remove_private`.
    """
    folder = SharedFolder.create(root or Path(tempfile.gettempdir()))
    if len(str(folder.path).encode()) <= FOLDER_LIMIT:
        return folder
    folder.remove()
    return SharedFolder.create(Path("/tmp"))


def remove_private(folder: SharedFolder) -> None:
    """Remove a private folder, and those of makers that were killed with all that they had started.

    At the end and not at the beginning: what a maker that was killed a moment ago has started still keeps its logs.
    """
    folder.remove()
    sweep(folder.path.parent)


@contextmanager
def run_folder() -> Iterator[Path]:
    """Give a private folder for files and sockets, which is removed at the end."""
    private = private_folder()
    try:
        yield private.path
    finally:
        with uninterrupted():
            remove_private(private)
