"""Flags that the commands which begin a run have in common."""

from pathlib import Path
from typing import get_args

import click

from lockstep.cli.options.completion import RunPath
from lockstep.cli.options.types import SEED, moment, seconds, worker_counts
from lockstep.common.runtime.numerics import Numerics

RUN_DIR_OPTION = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="new folder for the results  [runs/TIME-MODEL]",
)
RESUME_OPTION = click.option(
    "--resume",
    type=RunPath(),
    metavar="DIR",
    help="resume the run in DIR from its last checkpoint, with any number of workers",
)
LEASE_TIMEOUT_OPTION = click.option(
    "--lease-timeout",
    type=seconds,
    metavar="SECONDS",
    default=60.0,
    help="seconds after which a micro-batch is given to another worker  [60]",
)
SUPERVISED_OPTION = click.option(
    "--supervised",
    type=click.Path(path_type=Path),
    hidden=True,
    help="started by `train`: end when stdin does, and remove this folder if `train` no longer can",
)
NUMERICS_OPTION = click.option(
    "--numerics",
    type=click.Choice(get_args(Numerics)),
    metavar="KIND",
    help="native or portable: end if the run uses the other  [those of the run]",
)
PAUSE_OPTION = click.option(
    "--pause", is_flag=True, hidden=True, help="started by `fit`: wait for its callbacks between two epochs"
)
PICTURE_OPTION = click.option(
    "--picture/--no-picture",
    default=True,
    envvar="LOCKSTEP_PICTURE",
    help="draw learning.png in the run folder, if matplotlib is installed  [yes, $LOCKSTEP_PICTURE]",
)
WATCH_OPTION = click.option(
    "--watch",
    "is_watched",
    is_flag=True,
    help="show the run live in a browser, and print the link (needs the extra watch)",
)
CHAOS_OPTION = click.option(
    "--chaos",
    metavar="ACTIONS",
    help="inject faults into the run, such as 'kill-worker=1 stop-worker=2 slow-worker=1'",
)
CHAOS_SEED_OPTION = click.option(
    "--chaos-seed",
    type=SEED,
    default=0,
    metavar="INT",
    help="seed that decides when the faults happen  [0]",
)
CHECKPOINT_OPTION = click.option(
    "--checkpoint",
    "moment",
    type=moment,
    metavar="WHICH",
    default="last",
    help="weights to use: last, best (those of the best epoch), or a number of steps  [last]",
)
BEST_OPTION = click.option("--best", "moment", flag_value="best", type=moment, help="the same as --checkpoint best")
ON_OPTION = click.option(
    "--on",
    metavar="CLUSTER",
    help="run the processes on a Ray cluster: ray, or ray://HOST:10001  [this machine]",
)
WORKERS_OPTION = click.option(
    "--workers",
    type=worker_counts,
    metavar="INT",
    help="worker processes; 0: train in this process alone; 2..16: start with 2, use up to 16  [one per core]",
)
RUN_ARGUMENT = click.argument("run", type=RunPath())
