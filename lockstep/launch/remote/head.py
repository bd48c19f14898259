"""Rank 0 of a launcher's run: it has the server and one worker; the other ranks join as workers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from lockstep.common.errors import JobError
from lockstep.common.job.job import Job
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.transport.auth.keys import SERVER
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.client import StatusClient
from lockstep.launch.cluster import train_on
from lockstep.launch.endpoints import WARNING, server_credential
from lockstep.launch.numerics import demand_numerics
from lockstep.launch.process_backend import HERE, Observer, WatchedProcess, start_here
from lockstep.launch.remote.launcher import LauncherPlace
from lockstep.launch.run_end import kept_on_failure, show_end
from lockstep.results.reports.display import display_for, print_plainly
from lockstep.runs.job_file import resolve
from lockstep.runs.launch_config import Launch, default_launch
from lockstep.runs.run_dir import claimed_run_dir, has_begun, resumed_job
from lockstep.runs.session import Destination


@dataclass(frozen=True, kw_only=True)
class HeadBackend:
    """Starts what belongs to rank 0; its launcher starts the rest."""

    place: LauncherPlace
    #: The server's folder of keys, None if there are none.
    keys: Path | None = None
    is_insecure: bool = False
    has_external_workers: bool = field(default=True, init=False)

    def worker_count(self, launch: Launch) -> int:
        return 1

    def start_server(self, arguments: list[str], address: str, folder: Path, numerics: Numerics) -> WatchedProcess:
        access = [] if self.keys is None else ["--keys", str(self.keys)]
        access += ["--insecure"] if self.is_insecure else []
        # At the same address again: the others know no other.
        words = [*arguments, "--bind", self.place.bind, *access]
        return start_here("the server", words, folder, "server.log", numerics)

    def start_shard(self, number: int, server: str, folder: Path, numerics: Numerics) -> WatchedProcess:
        raise NotImplementedError("a launcher's processes are a server and workers: `lockstep node` refuses shards")

    def start_worker(self, number: int, server: str, folder: Path, numerics: Numerics) -> WatchedProcess:
        showing = [] if self.keys is None else ["--key", str(self.keys / SERVER)]
        arguments = ["worker", self.place.local_address, "--supervised", HERE, *showing]
        return start_here("a worker", arguments, folder, "worker-0.log", numerics)

    def observer(self, address: str, server: WatchedProcess) -> Observer:
        return StatusClient(dial(self.place.local_address, credential=server_credential(self.keys, None)))


def train_as_head(
    backend: HeadBackend, values: dict[str, Any], run_dir: Path | None, given: dict[str, Any], *, has_picture: bool
) -> None:
    """Be rank 0: begin the run in the folder, or resume it, and show how it goes."""
    if run_dir is not None and has_begun(run_dir):
        job, launch = resumed_job(run_dir, {**values, **given})
        destination = Destination(folder=run_dir, launch=_with_all_workers(backend.place, launch), is_resumed=True)
        _carry_out(backend, job, destination, has_picture=has_picture)
        return
    job, launch = resolve(values, given, default_launch())
    with claimed_run_dir(run_dir, job.model_name()) as folder:
        destination = Destination(folder=folder, launch=_with_all_workers(backend.place, launch))
        _carry_out(backend, job, destination, has_picture=has_picture)


def _with_all_workers(place: LauncherPlace, launch: Launch) -> Launch:
    """Return the launch with a worker for each process of the launcher; `JobError` if it asks for shards."""
    if launch.servers != 1:
        raise JobError(f"servers = {launch.servers!r} under {place.launcher}: expected 1, which rank 0 starts")
    if place.size is None:
        return msgspec.structs.replace(launch, workers=max(1, launch.min_workers or 1))
    return msgspec.structs.replace(launch, workers=place.size)


def _carry_out(backend: HeadBackend, job: Job, destination: Destination, *, has_picture: bool) -> None:
    """Train to the end and show how it went."""
    demand_numerics(job.numerics)
    console, place = Console(highlight=False), backend.place
    print_plainly(
        console, f"rank 0 of {place.size or 'many'}, started by {place.launcher}: server at {place.bind}, and worker"
    )
    if backend.is_insecure:
        print_plainly(console, WARNING)
    with kept_on_failure(console, destination.folder), display_for(console, SystemClock()) as display:
        result = train_on(backend, job, destination, display)
    show_end(console, result, destination.folder, has_picture=has_picture)
