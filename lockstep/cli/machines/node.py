"""`lockstep node`: the same command on every machine, under whatever launcher; each takes the place it was given."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lockstep.cli.machines.worker import worker
from lockstep.cli.options.job import JOB_FIELDS, LAUNCH_FIELDS, GroupedCommand, job_options, takes_job
from lockstep.cli.options.keys import INSECURE_OPTION, KEY_OPTION, KEYS_OPTION
from lockstep.cli.options.run import PICTURE_OPTION
from lockstep.cli.options.types import seconds
from lockstep.common.runtime.environment import own_environment
from lockstep.common.transport.auth.keys import SERVER
from lockstep.launch.client import say
from lockstep.launch.remote.head import HeadBackend, train_as_head
from lockstep.launch.remote.launcher import detect
from lockstep.launch.run_end import show_end
from lockstep.results.reports.display import print_plainly
from lockstep.runs.job_file import read_values
from lockstep.runs.run_dir import finished, has_begun


@click.command(cls=GroupedCommand, short_help="Take part in a run under Slurm, torchrun or MPI.")
@takes_job
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="folder of the run, which is resumed if it has begun  [runs/TIME-MODEL]",
)
@click.option("--timeout", type=seconds, metavar="SECONDS", help="seconds to wait for rank 0  [forever]")
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
    """Take part in a run that a launcher starts on many machines with one command.

    The rank of this process comes from the environment: of torchrun (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
    Slurm, Open MPI, or a pod of a Kubernetes job (JOB_COMPLETION_INDEX). Every rank is a worker, and rank 0 is the
    server as well. If the launcher does not provide the address of rank 0, set MASTER_ADDR.

    With --run-dir, the same command resumes a run that was interrupted. Rank 0 needs --keys. The other ranks need
    --key, or the same --keys if they see that folder. Exit codes are those of `lockstep train`.

    \b
      srun lockstep node job.toml --run-dir runs/mine --keys keys
      torchrun --nproc-per-node 4 --no-python lockstep node --model lenet
      mpirun -n 4 lockstep node --model lenet
    """
    place = detect(own_environment())
    given = {key: value for key, value in flags.items() if value is not None}
    if run_dir is not None and has_begun(run_dir) and (result := finished(run_dir)) is not None:
        # For every rank that sees the folder: none would find a server.
        print_plainly(Console(highlight=False), f"the run in {run_dir} is already finished")
        if not place.rank:
            show_end(Console(highlight=False), result, run_dir, has_picture=False)
        return
    if place.rank:
        say(f"rank {place.rank} of {place.size or 'many'}, started by {place.launcher}")
        context.invoke(worker, address=place.address, timeout=timeout, key=key or own_key(keys))
        return
    backend = HeadBackend(place=place, keys=keys, is_insecure=insecure)
    train_as_head(backend, read_values(job) if job else {}, run_dir, given, has_picture=picture)


def own_key(keys: Path | None) -> Path | None:
    """Return the server's key, which every rank that sees its folder may use."""
    return None if keys is None else keys / SERVER
