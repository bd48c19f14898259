"""Flags that the commands which begin a run have in common."""

from pathlib import Path
from typing import get_args

import click

from common.runtime.numerics import Numerics
from lockstep.cli.options.types import crowd, moment, seconds

JOB_OPTION = click.option(
    "--job",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="job file (TOML); without it, the shipped job of the model",
)
RUN_DIR_OPTION = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="new folder for the results  [runs/TIME-MODEL]",
)
RESUME_OPTION = click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="resume the run in DIR from its last checkpoint, with any number of workers",
)
LEASE_TIMEOUT_OPTION = click.option(
    "--lease-timeout",
    type=seconds,
    metavar="SECONDS",
    default=60.0,
    help="seconds until a micro-batch is leased to another worker  [60]",
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
    help="native or portable; if the server refuses that, end  [those of the run]",
)
PAUSE_OPTION = click.option(
    "--pause", is_flag=True, hidden=True, help="started by `fit`: wait for its callbacks between two epochs"
)
PICTURE_OPTION = click.option(
    "--picture/--no-picture",
    default=True,
    envvar="LOCKSTEP_PICTURE",
    help="leave learning.png in the run's folder, if matplotlib is installed  [yes, $LOCKSTEP_PICTURE]",
)
WATCH_OPTION = click.option(
    "--watch", "is_watched", is_flag=True, help="show the run on a page, and print its link (needs the extra watch)"
)
CHAOS_OPTION = click.option(
    "--chaos",
    metavar="ACTIONS",
    help="do this to the run's own processes, as 'kill-worker=1 stop-worker=2 slow-worker=1'",
)
CHAOS_SEED_OPTION = click.option(
    "--chaos-seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    default=0,
    metavar="INT",
    help="seed of the moments of --chaos  [0]",
)
CHECKPOINT_OPTION = click.option(
    "--checkpoint",
    "moment",
    type=moment,
    metavar="WHICH",
    default="last",
    help="which weights: last, best (of all epochs), or those after so many steps  [last]",
)
BEST_OPTION = click.option("--best", "moment", flag_value="best", type=moment, help="the same as --checkpoint best")
ON_OPTION = click.option(
    "--on",
    metavar="CLUSTER",
    help="place the processes on the nodes of a Ray cluster: ray, or ray://HOST:10001  [this machine]",
)
WORKERS_OPTION = click.option(
    "--workers",
    type=crowd,
    metavar="INT",
    help="worker processes; 0 trains in this process alone; 2..16 begins with 2 and takes up to 16  [one per core]",
)
