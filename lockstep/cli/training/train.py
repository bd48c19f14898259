"""`lockstep train`: a server and workers on this machine, or this process alone."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.cli.data.options import DIRECT_OPTIONS, direct_options
from lockstep.cli.data.progress import progress_of
from lockstep.cli.options.job import JOB_FIELDS, LAUNCH_FIELDS, GroupedCommand, job_options, takes_job
from lockstep.cli.options.run import (
    CHAOS_OPTION,
    CHAOS_SEED_OPTION,
    ON_OPTION,
    PICTURE_OPTION,
    RESUME_OPTION,
    RUN_DIR_OPTION,
    WATCH_OPTION,
    WORKERS_OPTION,
)
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import cache_home, cores
from lockstep.launch.chaos import Chaos, ChaosRequest, chaos_of, check_chaos, parse_chaos
from lockstep.launch.cluster import train_here, train_on
from lockstep.launch.numerics import begin_with
from lockstep.launch.page_process import PageProcess, PageRequest, page_beside, watched
from lockstep.launch.run_end import kept_on_failure, show_end
from lockstep.packing.cache import changed, packed_source
from lockstep.ps.records.run_folder import RunResult
from lockstep.results.reports.display import Display, display_for, print_plainly
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.launch_config import Launch, default_launch
from lockstep.runs.optional_packages import demand
from lockstep.runs.run_dir import check_resume_flags, claimed_run_dir, finished, resumed_job
from lockstep.runs.session import Destination


@click.command(cls=GroupedCommand, short_help="Train a model on this machine.")
@takes_job
@RUN_DIR_OPTION
@RESUME_OPTION
@CHAOS_OPTION
@CHAOS_SEED_OPTION
@ON_OPTION
@PICTURE_OPTION
@WATCH_OPTION
@WORKERS_OPTION
@DIRECT_OPTIONS
@job_options((*JOB_FIELDS, *(name for name in LAUNCH_FIELDS if name != "workers")))
def train(
    job: Path | None,
    run_dir: Path | None,
    resume: Path | None,
    chaos: str | None,
    chaos_seed: int,
    on: str | None,
    picture: bool,
    is_watched: bool,
    workers: int | tuple[int, int] | None,
    **flags: Any,
) -> None:
    """Train a model on this machine, with a parameter server and one worker per core.

    The values come from the job file JOB, or from the job that is shipped with the model (linear, mlp, lenet, cnn).
    Flags override them. The defaults in brackets are those of LeNet. The result depends on the job alone: any number
    of workers gives the same weights, to the bit.

    \b
      lockstep train                         # LeNet on MNIST, to 99 %
      lockstep train --model mlp --workers 3 --epochs 2 --seed 7
      lockstep train examples/cnn.toml --run-dir runs/mine
      lockstep train --model examples/my_model.py:build
      lockstep train --data houses.csv --target price --model net.py:build
      lockstep train --workers 0             # in this process: the same bits
      lockstep train --resume runs/mine      # from where it stopped
      lockstep train --chaos kill-worker=2   # kill two workers on the way
      lockstep train --on ray --workers 2..16 --run-dir /shared/mine
    """
    packing = direct_options(flags)
    given = {**counts(workers), **{key: value for key, value in flags.items() if value is not None}}
    request = None if chaos is None else ChaosRequest(parse_chaos(chaos), chaos_seed)
    manner = Manner(Console(highlight=False), request, on, picture, PageRequest() if is_watched else None)
    if resume is not None:
        check_resume_flags(job=job, run_dir=run_dir)
        if given_too := changed(packing):
            raise UsageError(
                f"--resume with --{given_too[0].replace('_', '-')}: the run has its data already: remove the flag"
            )
        resume_run(manner, resume, given)
        return
    resolved, launch = resolve(read_values(job) if job else {}, given, default_launch())
    begin_here(resolved, launch)
    console, cache = manner.console, Path(cache_home()) / "lockstep"
    loss = resolved.loss
    data = packed_source(resolved.data, packing, loss, cache, progress_of, lambda text: print_plainly(console, text))
    resolved = msgspec.structs.replace(resolved, data=data)
    with claimed_run_dir(run_dir, resolved.model_name()) as folder:
        carry_out(manner, resolved, Destination(folder=folder, launch=launch))


@dataclass(frozen=True)
class Manner:
    """How `train` carries out a run and shows it."""

    console: Console
    chaos: ChaosRequest | None
    #: The Ray cluster on which processes are placed, None for this machine.
    cluster: str | None
    has_picture: bool
    #: A page that shows the run, None if there is to be none.
    page: PageRequest | None = None


def resume_run(manner: Manner, folder: Path, given: dict[str, Any]) -> None:
    """Resume a run and train to its end."""
    job, launch = resumed_job(folder, given)
    result = finished(folder)
    if result is None:
        begin_here(job, launch)
        carry_out(manner, job, Destination(folder=folder, launch=launch, is_resumed=True))
        return
    print_plainly(manner.console, f"the run in {folder} is already finished")
    show_end(manner.console, result, folder, cores(), has_picture=False)


def begin_here(job: Job, launch: Launch) -> None:
    """Begin again if this process is to compute and does not have the job's numerics."""
    if not launch.workers:
        begin_with(job.numerics)


def counts(workers: int | tuple[int, int] | None) -> dict[str, int]:
    """Return what `--workers` says of a launch: of a range, its run begins with the fewest."""
    match workers:
        case None:
            return {}
        case int():
            return {"workers": workers}
        case fewest, most:
            return {"workers": most, "min_workers": fewest}


def carry_out(manner: Manner, job: Job, destination: Destination) -> None:
    """Train to the end and show how it went."""
    if manner.chaos is not None:
        check_chaos(manner.chaos.counts, destination.launch)
    with page_beside(manner.page, destination.folder) as page:
        carry_out_beside(page, manner, job, destination)


def carry_out_beside(page: PageProcess | None, manner: Manner, job: Job, destination: Destination) -> None:
    """Do that with a page next to it, which stays open in a terminal until somebody ends it."""
    console, request, cluster = manner.console, manner.chaos, manner.cluster
    shown = display_for(console, SystemClock(), announcement(job, destination, cluster))
    with kept_on_failure(console, destination.folder), watched(page, shown) as display:
        chaos = None if request is None else chaos_of(request, SystemClock(), display.say)
        if cluster is None:
            result = train_here(job, destination, display, chaos)
        else:
            result = train_on_ray(cluster, job, destination, display, chaos)
    machine = cores() if cluster is None else None
    show_end(console, result, destination.folder, machine, has_picture=manner.has_picture)
    if page is not None and console.is_terminal:
        print_plainly(console, f"the page stays open at {page.link} until you press Ctrl-C")
        page.stay()


def announcement(job: Job, destination: Destination, cluster: str | None) -> list[str]:
    """Return what is about to be trained, on how many processes, and where the results go."""
    length = counted(job.epochs, "epoch") if job.steps is None else counted(job.steps, "step")
    launch = destination.launch
    if launch.workers:
        servers = "a server" if launch.servers == 1 else f"{launch.servers} servers"
        place = "this machine" if cluster is None else "the Ray cluster"
        processes = f"with {servers} and {counted(launch.workers, 'worker')} on {place}"
    else:
        processes = "in this process alone"
    return [
        f"training {job.model_name()} on {job.data}: {length}, {processes}",
        f"weights, figures and logs go to {destination.folder}",
    ]


def counted(number: int, noun: str) -> str:
    """Return a number of things: `1 worker`, `2 workers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def train_on_ray(on: str, job: Job, destination: Destination, display: Display, chaos: Chaos | None) -> RunResult:
    """Train on the nodes of a Ray cluster."""
    # Without a port, Ray would try another one for minutes.
    if on != "ray" and not re.fullmatch(r"ray://.+:[0-9]{1,5}", on):
        raise UsageError(f"--on {on!r} is not a cluster: expected ray, or ray://HOST:10001")
    demand("ray", "ray", f"--on {on}")
    from lockstep.launch.remote.ray_backend import ray_backend

    with ray_backend(on, destination, display) as backend:
        return train_on(backend, job, destination, display, chaos)
