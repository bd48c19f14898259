"""Starts the processes of a run: knows their commands, addresses and folders."""

from dataclasses import dataclass
from pathlib import Path

from lockstep.common.job.job import Job
from lockstep.launch.process_backend import ProcessBackend
from lockstep.launch.supervision.child import HERE, WatchedProcess
from lockstep.launch.supervision.restarts import ProcessPlace, Role
from lockstep.runs.job_file import to_toml
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
    #: The address of the server; empty until it listens.
    address: str = ""

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return self.destination.folder

    def start(self, place: ProcessPlace) -> WatchedProcess:
        """Start the process of a place."""
        words, address = [place.role.value, self.address], ""
        if place.role is Role.SERVER:
            words, address = [place.role.value, *self._server_arguments()], self.address
        return self.backend.start(place, [*words, *SUPERVISED], self.folder, address)

    def _server_arguments(self) -> list[str]:
        launch = self.destination.options
        (self.folder / JOB_FILE).write_text(to_toml(self.job, launch), encoding="utf-8")
        # Those of a server that has listened before may not all be back.
        needed = 1 if self.address else launch.min_workers or launch.workers
        return [
            *("--job", f"{HERE}/{JOB_FILE}"),
            # In which it resumes the run, if that has begun there.
            *("--run-dir", str(self.run_dir)),
            *("--min-workers", str(needed)),
            *(["--pause"] if self.pauses else []),
        ]
