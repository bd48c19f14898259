"""`lockstep node`: the same command on every machine, under whatever launcher; each takes the place it was given."""

from dataclasses import dataclass, field
from pathlib import Path

import click
from msgspec.structs import replace
from rich.console import Console

from lockstep.cli.machines.worker import WorkerRequest, take_place
from lockstep.cli.options.job import JobCommand, JobRequest, takes_job, takes_trust
from lockstep.cli.options.packing import cache_shown_on
from lockstep.cli.options.run import INSECURE_OPTION, KEY_OPTION, KEYS_OPTION, PICTURE_OPTION, TIMEOUT_OPTION
from lockstep.cli.options.types import whole_number
from lockstep.common.errors import JobError
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import PROCESSES_LIMIT
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import own_environment
from lockstep.launch.client import say
from lockstep.launch.cluster import train_on
from lockstep.launch.endpoints import WARNING, server_key_in
from lockstep.launch.process_backend import start_here
from lockstep.launch.remote.launcher import LauncherPlace, detect
from lockstep.launch.run_end import kept_on_failure, show_end
from lockstep.launch.supervision.child import WatchedProcess
from lockstep.launch.supervision.restarts import ProcessPlace, Role
from lockstep.launch.team import default_processes, team_arguments
from lockstep.results.display import display_for, print_plainly
from lockstep.runs.run_dir import finished, has_begun
from lockstep.runs.session import Destination, destination_of


@click.command(cls=JobCommand, short_help="Take part in a run under Slurm, torchrun or MPI.")
@takes_job("min_workers", "transport")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="folder of the run, which is resumed if it has begun  [runs/TIME-MODEL]",
)
@click.option(
    "--workers",
    type=whole_number(1, PROCESSES_LIMIT),
    metavar="INT",
    help="worker processes of each rank  [one per core, or one if the launcher starts several ranks per machine]",
)
@TIMEOUT_OPTION
@KEYS_OPTION
@KEY_OPTION
@INSECURE_OPTION
@PICTURE_OPTION
@takes_trust
def node(
    job: JobRequest,
    run_dir: Path | None,
    workers: int | None,
    timeout: float | None,
    keys: Path | None,
    key: Path | None,
    insecure: bool,
    picture: bool,
) -> int:
    """Take part in a run that a launcher starts on many machines with one command.

    The rank of this process comes from the environment: of torchrun (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
    Slurm, Open MPI, or a pod of a Kubernetes job (JOB_COMPLETION_INDEX). Every rank computes, and rank 0 is the server
    as well. One rank on a machine starts a worker process per core; several ranks on a machine are one process each,
    and form a team. If the launcher does not provide the address of rank 0, set MASTER_ADDR.

    With --run-dir, the same command resumes a run that was interrupted. Rank 0 needs --keys. The other ranks need
    --key, or the same --keys if they see that folder. Rank 0 restarts a server that has died. If its machine is lost,
    the other ranks wait until the launcher has started the command again. Exit codes are those of `lockstep train`.

    \b
      srun lockstep node job.toml --run-dir runs/mine --keys keys
      torchrun --nproc-per-node 4 --no-python lockstep node --model lenet
      mpirun -n 4 lockstep node --model lenet
    """
    place = detect(own_environment())
    is_resumed = run_dir is not None and has_begun(run_dir)
    if run_dir is not None and is_resumed and (result := finished(run_dir)) is not None:
        # For every rank that sees the folder: none would find a server.
        print_plainly(Console(highlight=False), f"the run in {run_dir} is already finished")
        if not place.rank:
            show_end(Console(highlight=False), result, run_dir, has_picture=False)
        return 0
    if place.rank:
        say(f"rank {place.rank} of {place.size or 'many'}, started by {place.launcher}")
        return compute(place, workers, timeout, key or server_key_in(keys))
    if run_dir is not None and is_resumed:
        cache = cache_shown_on(Console(highlight=False))
        resolved, launch = cache.resumed(run_dir, {**job.in_file(), **job.given})
    else:
        resolved, launch = job.resolve()
    launch = with_all_workers(place, launch, workers)
    with destination_of(resolved, launch, run_dir, is_resumed=is_resumed) as destination:
        is_one = is_host_team(place, workers)
        backend = HeadBackend(place, keys, insecure, 1 if is_one else workers or default_processes(), is_one)
        train_as_head(backend, resolved, destination, has_picture=picture)
    return 0


def is_host_team(place: LauncherPlace, workers: int | None) -> bool:
    """Return whether the ranks on this host are the processes of one team: no flag makes each of them one."""
    return workers is None and place.local_size > 1


def ranks_of(place: LauncherPlace) -> tuple[str, int]:
    """Return the name of the team of this host's ranks, which no other run has here, and how many these are."""
    return f"{place.launcher} {place.host} {place.port}", place.local_size


def compute(place: LauncherPlace, workers: int | None, timeout: float | None, key: Path | None) -> int:
    """Be another rank than 0 until the run is over; return the exit code."""
    request = WorkerRequest.of(workers, address=place.address, timeout=timeout, key=key)
    if is_host_team(place, workers):
        is_later = place.local_rank > 0
        limit, ranks = place.local_size, ranks_of(place)
        request = replace(request, processes=1, limit=limit, ranks=ranks, is_later_rank=is_later)
    return take_place(request)


@dataclass(frozen=True)
class HeadBackend:
    """Starts what belongs to rank 0, the server and its worker processes; its launcher starts the rest."""

    place: LauncherPlace
    #: The server's folder of keys, None without keys.
    keys: Path | None
    is_insecure: bool
    workers: int = 1
    #: Whether the process that is started here leads the team of this host's ranks.
    is_of_ranks: bool = False
    has_external_workers: bool = field(default=True, init=False)

    @property
    def team_size(self) -> int:
        return self.workers

    def start(self, place: ProcessPlace, words: list[str], folder: Path, address: str) -> WatchedProcess:
        if place.role is Role.WORKER:
            key = server_key_in(self.keys)
            flags = [*self._team(place.number, folder), *([] if key is None else ["--key", str(key)])]
            return start_here(place, [*words, *flags], folder)
        access = [] if self.keys is None else ["--keys", str(self.keys)]
        access += ["--insecure"] if self.is_insecure else []
        # The server, at the same address again: the others know no other.
        return start_here(place, [*words, "--bind", self.place.bind, *access], folder)

    def _team(self, number: int, folder: Path) -> list[str]:
        if not self.is_of_ranks:
            return team_arguments(folder / "team-0", number, self.workers)
        name, size = ranks_of(self.place)
        return ["--workers", "1", "--ranks", name, str(size)]


def with_all_workers(place: LauncherPlace, launch: RunOptions, workers: int | None) -> RunOptions:
    """Return the launch with so many workers of each rank, at least one.

    How many cores other machines have is not known here: a run does not wait for more than one process of each.
    `JobError` if it asks for shards.
    """
    if launch.servers != 1:
        raise JobError(f"servers = {launch.servers!r} under {place.launcher}: expected 1, which rank 0 starts")
    return replace(launch, workers=(place.size or max(1, launch.min_workers or 1)) * (workers or 1))


def train_as_head(backend: HeadBackend, job: Job, destination: Destination, *, has_picture: bool) -> None:
    """Be rank 0: train to the end and show how it went."""
    console, place = Console(highlight=False), backend.place
    who = "a worker" if backend.workers == 1 else f"{backend.workers} workers"
    print_plainly(
        console, f"rank 0 of {place.size or 'many'}, started by {place.launcher}: server at {place.bind}, and {who}"
    )
    if backend.is_insecure:
        print_plainly(console, WARNING)
    with kept_on_failure(console, destination.folder), display_for(console, SystemClock()) as display:
        result = train_on(backend, job, destination, display)
    show_end(console, result, destination.folder, has_picture=has_picture)
