"""Starts the processes of a run: knows their commands, addresses and folders."""

from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from lockstep.common.job.job import Job
from lockstep.launch.process_backend import ProcessBackend
from lockstep.launch.supervision.child import HERE, WatchedProcess
from lockstep.launch.supervision.restarts import ProcessPlace, Role
from lockstep.runs.job_file import to_toml
from lockstep.runs.run_dir import STANDBY_FOLDER, has_begun
from lockstep.runs.session import Destination

#: The name of the job file in the private folder of a run.
JOB_FILE = "job.toml"

#: The end of the commands of processes that end with this one.
SUPERVISED = ["--supervised", HERE]


@dataclass
class RunStarter:
    """Starts the processes of one run: knows their commands, their addresses and their folders."""

    job: Job
    destination: Destination
    #: Starts them, here or elsewhere.
    backend: ProcessBackend
    #: The private folder of the run.
    folder: Path
    #: Whether the server waits for callbacks between two epochs.
    pauses: bool = False
    #: The addresses of the server and of the standby; empty until they listen.
    address: str = ""
    standby_address: str = ""
    #: The folder that the run is in at the end.
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.destination.folder

    @property
    def run_dir(self) -> Path:
        """The folder that the run is in now: that of the standby if it leads the run."""
        return self.destination.folder

    def start(self, place: ProcessPlace) -> WatchedProcess:
        """Start the process of a place."""
        words, address = [place.role.value, self.addresses()], ""
        if place.role is Role.SERVER:
            words, address = [place.role.value, *self._server_arguments()], self.address
        elif place.role is Role.STANDBY:
            folder, address = str(self.home / STANDBY_FOLDER), self.standby_address
            words = [Role.SERVER.value, "--standby-of", self.address, "--run-dir", folder]
        return self.backend.start(place, [*words, *SUPERVISED], self.folder, address)

    def addresses(self) -> str:
        """Return where the run may be led from: a process that is restarted knows no other."""
        return ",".join(filter(None, (self.address, self.standby_address)))

    def follow_standby(self) -> None:
        """Take the standby for the server."""
        self.destination = replace(self.destination, folder=self.home / STANDBY_FOLDER, is_resumed=True)
        self.address, self.standby_address = self.standby_address, ""

    def _server_arguments(self) -> list[str]:
        launch = self.destination.options
        (self.folder / JOB_FILE).write_text(to_toml(self.job, launch), encoding="utf-8")
        # One that was killed before it had begun the run begins it.
        is_resumed = self.destination.is_resumed or has_begun(self.run_dir)
        # Those of a server that has listened before may not all be back.
        needed = 1 if self.address else launch.min_workers or launch.workers
        return [
            *("--job", f"{HERE}/{JOB_FILE}"),
            *("--resume" if is_resumed else "--run-dir", str(self.run_dir)),
            *("--min-workers", str(needed)),
            *(["--pause"] if self.pauses else []),
        ]
