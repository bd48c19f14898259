"""`lockstep train`: a server and workers on this machine, or this process alone."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace
from rich.console import Console

from lockstep.cli.options.job import HELP_JOB_OPTION, JobCommand, JobRequest, takes_job, takes_trust
from lockstep.cli.options.packing import DIRECT_OPTIONS, cache_shown_on, direct_options, with_packed_data
from lockstep.cli.options.run import PICTURE_OPTION, RESUME_OPTION, RUN_DIR_OPTION, WATCH_OPTION
from lockstep.cli.options.types import SEED, worker_counts
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import cores
from lockstep.launch.chaos import Chaos, PlannedAction, check_chaos, parse_chaos, planned_actions
from lockstep.launch.cluster import train_here, train_on
from lockstep.launch.page_process import PageRequest, page_beside, watched
from lockstep.launch.placement import chosen_processes
from lockstep.launch.run_end import kept_on_failure, show_end
from lockstep.ps.records.run_folder import RunResult
from lockstep.results.display import Display, counted, display_for, print_plainly
from lockstep.runs.job_data import length_reason, scale_note, shown_data
from lockstep.runs.own_command import demand
from lockstep.runs.run_dir import check_resume_flags, finished
from lockstep.runs.session import Destination, destination_of


@click.command(cls=JobCommand, short_help="Train a model on this machine.")
@takes_job("servers", "transport")
@HELP_JOB_OPTION
@RUN_DIR_OPTION
@RESUME_OPTION
@click.option(
    "--chaos",
    metavar="ACTIONS",
    help="inject faults into the run, such as 'kill-worker=1 stop-worker=2 slow-worker=1'",
)
@click.option(
    "--chaos-seed",
    type=SEED,
    default=0,
    metavar="INT",
    help="seed that decides when the faults happen  [0]",
)
@click.option(
    "--on",
    metavar="CLUSTER",
    help="run the workers on a Ray cluster: ray, or ray://HOST:10001  [this machine]",
)
@PICTURE_OPTION
@WATCH_OPTION
@click.option(
    "--workers",
    type=worker_counts,
    metavar="INT",
    help="worker processes; 0: train in this process alone; 2..16: start with 2, use up to 16  [one per core, or 0 if "
    "that is quicker]",
)
@DIRECT_OPTIONS
@takes_trust
def train(
    job: JobRequest,
    run_dir: Path | None,
    resume: Path | None,
    chaos: str | None,
    chaos_seed: int,
    on: str | None,
    picture: bool,
    is_watched: bool,
    workers: dict[str, int] | None,
    **packing_flags: Any,
) -> None:
    """Train a model on this machine, with a parameter server and one worker per core.

    The values of the job come from the file JOB, or from the job that is shipped with the model. Flags override them,
    and the brackets show what holds without them. The result depends on the job alone: any number of workers gives
    the same weights, to the bit. If this process alone would be done as soon, it trains without workers.

    \b
      lockstep train                         # LeNet on MNIST, to 99 %
      lockstep train --model mlp --workers 3 --epochs 2 --seed 7
      lockstep train job.toml --run-dir runs/mine --set keep_best=true
      lockstep train --model examples/my_model.py:build
      lockstep train --data houses.csv --target price
      lockstep train --data pictures         # a folder for each class
      lockstep train --resume runs/mine      # from where it stopped
    """
    packing, console = direct_options(packing_flags), Console(highlight=False)
    job = replace(job, given={**(workers or {}), **job.given})
    faults = None if chaos is None else parse_chaos(chaos)
    page = PageRequest() if is_watched else None
    if resume is None:
        resolved, launch = with_packed_data(job, packing, console).resolve()
    else:
        check_resume_flags(job=job.file, run_dir=run_dir)
        if given_too := packing.changed():
            raise UsageError(
                f"--resume with {packing.spelled(given_too[0])}: the run has its data already: remove the flag"
            )
        resolved, launch = cache_shown_on(console).resumed(resume, job.given)
        if (result := finished(resume)) is not None:
            print_plainly(console, f"the run in {resume} is already finished")
            show_end(console, result, resume, cores(), has_picture=False)
            return
    is_placed = resume is not None or on is not None or faults is not None
    with destination_of(resolved, launch, resume or run_dir, is_resumed=resume is not None) as destination:
        options, why = (launch, "") if is_placed else chosen_processes(resolved, launch, job.values(), SystemClock())
        destination = replace(destination, options=options)
        chosen = [] if resume is not None else [note(resolved, job.values()) for note in (length_reason, scale_note)]
        announced = announcement(resolved, destination, on, chosen, processes=why)
        if faults is not None:
            check_chaos(faults, destination.options)
        ahead = None if faults is None else planned_actions(faults, chaos_seed)
        carry_out(console, resolved, destination, ahead, announced, cluster=on, page=page, has_picture=picture)


def carry_out(
    console: Console,
    job: Job,
    destination: Destination,
    ahead: list[PlannedAction] | None,
    announced: Sequence[str],
    *,
    cluster: str | None,
    page: PageRequest | None,
    has_picture: bool,
) -> None:
    """Train to the end, with these faults, and show how it went; a page stays open in a terminal until it is ended.

    The lines `announced` are shown first. `cluster` is the Ray cluster on which processes are placed, None for this
    machine.
    """
    with page_beside(page, destination.folder, partial(print_plainly, console)) as process:
        shown = display_for(console, SystemClock(), announced)
        with kept_on_failure(console, destination.folder), watched(process, shown) as display:
            chaos = None if ahead is None else Chaos(ahead, SystemClock(), display.say)
            if cluster is None:
                result = train_here(job, destination, display, chaos)
            else:
                result = train_on_ray(cluster, job, destination, display, chaos)
        machine = cores() if cluster is None else None
        show_end(console, result, destination.folder, machine, has_picture=has_picture)
        if process is not None and console.is_terminal:
            print_plainly(console, f"the page stays open at {process.link} until you press Ctrl-C")
            process.stay()


def announcement(
    job: Job, destination: Destination, cluster: str | None, chosen: Sequence[str], *, processes: str
) -> list[str]:
    """Return lines with the model and the data, the number of processes, and the folder of the results.

    `chosen` are lines on values that follow from the data; `processes` is the reason for their number, if that was
    chosen for the user.
    """
    counts = counted(job.epochs, "epoch") if job.steps is None else counted(job.steps, "step")
    launch = destination.options
    if launch.workers:
        servers = "a server" if launch.servers == 1 else f"{launch.servers} servers"
        here, place = ("", "this machine") if cluster is None else (" here", "the Ray cluster")
        where = f"with {servers}{here} and {counted(launch.workers, 'worker')} on {place}"
    else:
        where = f"in this process alone{processes and f': {processes}'}"
    return [
        f"training {job.model_name()} on {shown_data(job.data)}: {counts}, {where}",
        *filter(None, chosen),
        f"weights, figures and logs go to {destination.folder}",
    ]


def train_on_ray(on: str, job: Job, destination: Destination, display: Display, chaos: Chaos | None) -> RunResult:
    """Train with servers here and teams on the nodes of a Ray cluster."""
    # Without a port, Ray would try another one for minutes.
    if on != "ray" and not re.fullmatch(r"ray://.+:[0-9]{1,5}", on):
        raise UsageError(f"--on {on!r} is not a cluster: expected ray, or ray://HOST:10001")
    demand("ray", "ray", f"--on {on}")
    from lockstep.launch.remote.ray_backend import ray_backend

    with ray_backend(on, destination.options, display) as backend:
        return train_on(backend, job, destination, display, chaos)
