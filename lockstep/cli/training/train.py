"""`lockstep train`: a server and workers on this machine, or this process alone."""

import re
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.errors import UsageError
from common.job.job import Job
from common.runtime.clock import SystemClock
from common.runtime.environment import cores
from lockstep.cli.options.job import JOB_FIELDS, LAUNCH_FIELDS, GroupedCommand, job_options
from lockstep.cli.options.run import (
    CHAOS_OPTION,
    CHAOS_SEED_OPTION,
    JOB_OPTION,
    ON_OPTION,
    RESUME_OPTION,
    RUN_DIR_OPTION,
    WORKERS_OPTION,
)
from lockstep.launch.chaos import Asked, Chaos, chaos_of, check_chaos, parse_chaos
from lockstep.launch.local import kept_on_failure, train_here, train_on
from lockstep.reports.display import Display, display_for, print_plainly
from lockstep.reports.summary import show_summary
from lockstep.runs.extras import demand
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.launch import default_launch
from lockstep.runs.resume import check_alone, finished, resumed_job
from lockstep.runs.run_dir import claimed_run_dir
from lockstep.runs.session import Destination
from ps.records.run_folder import RunResult


@click.command(cls=GroupedCommand, short_help="Train on this machine.")
@JOB_OPTION
@RUN_DIR_OPTION
@RESUME_OPTION
@CHAOS_OPTION
@CHAOS_SEED_OPTION
@ON_OPTION
@WORKERS_OPTION
@job_options((*JOB_FIELDS, *(name for name in LAUNCH_FIELDS if name != "workers")))
def train(
    job: Path | None,
    run_dir: Path | None,
    resume: Path | None,
    chaos: str | None,
    chaos_seed: int,
    on: str | None,
    workers: int | tuple[int, int] | None,
    **flags: Any,
) -> None:
    """Train on this machine: a parameter server, and a worker a core.

    Values come from the job file, or else from the shipped job of the model (linear, mlp, lenet, cnn); flags are laid
    over them. In brackets: what runs where nothing is given, which is LeNet's job. The result depends on the job alone:
    any number of workers gives the same weights, to the bit.

    \b
      lockstep train                         LeNet on MNIST, to 99 %
      lockstep train --model mlp --workers 3 --epochs 2 --seed 7
      lockstep train --job examples/cnn.toml --run-dir runs/mine
      lockstep train --model examples/my_model.py:build
      lockstep train --workers 0             in this process alone, the same bits
      lockstep train --resume runs/mine      go on where it stopped, the same bits
      lockstep train --chaos stop-worker=2   do that to itself, the same bits
      lockstep train --on ray --workers 2..16 --run-dir /shared/mine
    """
    given = {**counts(workers), **{key: value for key, value in flags.items() if value is not None}}
    console, asked = Console(highlight=False), None if chaos is None else Asked(parse_chaos(chaos), chaos_seed)
    if resume is not None:
        check_alone(job=job, run_dir=run_dir)
        go_on(console, resume, given, asked, on)
        return
    resolved, launch = resolve(read_values(job) if job else {}, given, default_launch())
    with claimed_run_dir(run_dir, resolved.model_name()) as folder:
        carry_out(console, resolved, Destination(folder=folder, launch=launch), asked, on)


def go_on(console: Console, folder: Path, given: dict[str, Any], asked: Asked | None, on: str | None) -> None:
    """Go on with a run to its end."""
    job, launch = resumed_job(folder, given)
    result = finished(folder)
    if result is None:
        carry_out(console, job, Destination(folder=folder, launch=launch, is_resumed=True), asked, on)
        return
    print_plainly(console, f"the run in {folder} is finished: nothing is left to do")
    show_summary(console, result, folder, cores())


def counts(workers: int | tuple[int, int] | None) -> dict[str, int]:
    """Return what `--workers` says of a launch: of a range, its run begins with the fewest."""
    match workers:
        case None:
            return {}
        case int():
            return {"workers": workers}
        case fewest, most:
            return {"workers": most, "min_workers": fewest}


def carry_out(console: Console, job: Job, destination: Destination, asked: Asked | None, on: str | None) -> None:
    """Train to the end and show how it went."""
    if asked is not None:
        check_chaos(asked.wanted, destination.launch)
    with kept_on_failure(console, destination.folder), display_for(console, SystemClock()) as display:
        chaos = None if asked is None else chaos_of(asked, SystemClock(), display.say)
        if on is None:
            result = train_here(job, destination, display, chaos)
        else:
            result = train_on_ray(on, job, destination, display, chaos)
    show_summary(console, result, destination.folder, cores() if on is None else None)


def train_on_ray(on: str, job: Job, destination: Destination, display: Display, chaos: Chaos | None) -> RunResult:
    """Train on the nodes of a Ray cluster."""
    # Without a port, Ray would try another one for minutes.
    if on != "ray" and not re.fullmatch(r"ray://.+:[0-9]{1,5}", on):
        raise UsageError(f"--on {on!r} is no cluster: expected ray, or ray://HOST:10001")
    demand("ray", "ray", f"--on {on}")
    from lockstep.launch.remote.ray_backend import ray_backend

    with ray_backend(on, destination, display) as ground:
        return train_on(ground, job, destination, display, chaos)
