"""`lockstep node`: the same command on every machine, under whatever launcher; each takes the place it was given."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from common.errors import JobError
from common.job.job import Job
from common.runtime.clock import SystemClock
from common.runtime.environment import own_environment
from common.transport.auth.key_folder import SERVER
from lockstep.cli.options.job import JOB_FIELDS, LAUNCH_FIELDS, GroupedCommand, job_options
from lockstep.cli.options.keys import INSECURE_OPTION, KEY_OPTION, KEYS_OPTION
from lockstep.cli.options.run import JOB_OPTION, PICTURE_OPTION
from lockstep.cli.options.types import seconds
from lockstep.cli.training.worker import say, worker
from lockstep.launch.endpoints import WARNING
from lockstep.launch.local import train_on
from lockstep.launch.remote.head import HeadBackend
from lockstep.launch.remote.place import LauncherPlace, detect
from lockstep.launch.report import kept_on_failure, show_end
from lockstep.reports.display import display_for, print_plainly
from lockstep.reports.summary import show_summary
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.launch import Launch, default_launch
from lockstep.runs.run_dir import claimed_run_dir, finished, has_begun, resumed_job
from lockstep.runs.session import Destination


@click.command(cls=GroupedCommand, short_help="Take part in a run as the launcher says.")
@JOB_OPTION
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="folder of the run: begun there, or resumed where it was begun  [runs/TIME-MODEL]",
)
@click.option("--timeout", type=seconds, metavar="SECONDS", help="seconds to wait for rank 0; without it, for ever")
@KEYS_OPTION
@KEY_OPTION
@INSECURE_OPTION
@PICTURE_OPTION
@job_options((*JOB_FIELDS, *(name for name in LAUNCH_FIELDS if name not in ("workers", "servers"))))
@click.pass_context
def node(
    context: click.Context,
    /,
    job: Path | None,
    run_dir: Path | None,
    timeout: float | None,
    keys: Path | None,
    key: Path | None,
    insecure: bool,
    picture: bool,
    **flags: Any,
) -> None:
    """Take part in a run that a launcher has started on many machines, by one command for all.

    The environment says which place this process has, under torchrun (RANK WORLD_SIZE MASTER_ADDR MASTER_PORT), Slurm,
    Open MPI, or in a pod of a Kubernetes job (JOB_COMPLETION_INDEX). Rank 0 serves and works, the others work: a worker
    for each process. Where the launcher does not say where rank 0 is, MASTER_ADDR does.

    With --run-dir, a run that was interrupted goes on when the same command is started again. Rank 0 needs --keys, and
    the others --key, or the same --keys where they see the folder. Exit codes are those of `lockstep train`.

    \b
      srun lockstep node --job job.toml --run-dir runs/mine --keys keys
      torchrun --nproc-per-node 4 --no-python lockstep node --model lenet
      mpirun -n 4 lockstep node --model lenet
    """
    place = detect(own_environment())
    given = {key: value for key, value in flags.items() if value is not None}
    if run_dir is not None and has_begun(run_dir) and (result := finished(run_dir)) is not None:
        # For every rank that sees the folder: none would find a server.
        print_plainly(Console(highlight=False), f"the run in {run_dir} is finished: nothing is left to do")
        if not place.rank:
            show_summary(Console(highlight=False), result, run_dir)
        return
    if place.rank:
        say(f"rank {place.rank} of {place.size or 'many'} by {place.launcher}")
        context.invoke(worker, address=place.address, timeout=timeout, key=key or own_key(keys), supervised=None)
        return
    backend = HeadBackend(place=place, keys=keys, is_insecure=insecure)
    lead(backend, read_values(job) if job else {}, run_dir, given, has_picture=picture)


def own_key(keys: Path | None) -> Path | None:
    """Return the server's own key, which whoever has its folder may show."""
    return None if keys is None else keys / SERVER


def lead(
    backend: HeadBackend, values: dict[str, Any], run_dir: Path | None, given: dict[str, Any], *, has_picture: bool
) -> None:
    """Be rank 0: begin the run in the folder, or resume it, and show how it goes."""
    if run_dir is not None and has_begun(run_dir):
        job, launch = resumed_job(run_dir, {**values, **given})
        destination = Destination(folder=run_dir, launch=all_of(backend.place, launch), is_resumed=True)
        carry_out(backend, job, destination, has_picture=has_picture)
        return
    job, launch = resolve(values, given, default_launch())
    with claimed_run_dir(run_dir, job.model_name()) as folder:
        destination = Destination(folder=folder, launch=all_of(backend.place, launch))
        carry_out(backend, job, destination, has_picture=has_picture)


def all_of(place: LauncherPlace, launch: Launch) -> Launch:
    """Return the launch with a worker for each process of the launcher; `JobError` if it asks for shards."""
    if launch.servers != 1:
        raise JobError(f"servers = {launch.servers!r} under {place.launcher}: expected 1, which rank 0 starts")
    if place.size is None:
        return msgspec.structs.replace(launch, workers=max(1, launch.min_workers or 1))
    return msgspec.structs.replace(launch, workers=place.size)


def carry_out(backend: HeadBackend, job: Job, destination: Destination, *, has_picture: bool) -> None:
    """Train to the end and show how it went."""
    console, place = Console(highlight=False), backend.place
    print_plainly(console, f"rank 0 of {place.size or 'many'} by {place.launcher}: serves at {place.bind}, and works")
    if backend.is_insecure:
        print_plainly(console, WARNING)
    with kept_on_failure(console, destination.folder), display_for(console, SystemClock()) as display:
        result = train_on(backend, job, destination, display)
    show_end(console, result, destination.folder, has_picture=has_picture)
