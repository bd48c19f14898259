"""`lockstep train`: a server and workers on this machine, or this process alone."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.clock import SystemClock
from common.environment import cores
from lockstep.commands.job_options import JOB_FIELDS, LAUNCH_FIELDS, GroupedCommand, job_options
from lockstep.commands.run_options import JOB_OPTION, RUN_DIR_OPTION
from lockstep.display import display_for
from lockstep.job_file import read_values, resolve
from lockstep.launch import default_launch
from lockstep.local import kept_on_failure, train_here
from lockstep.run_dir import claimed_run_dir
from lockstep.summary import show_summary


@click.command(cls=GroupedCommand, short_help="Train on this machine.")
@JOB_OPTION
@RUN_DIR_OPTION
@job_options((*JOB_FIELDS, *LAUNCH_FIELDS))
def train(job: Path | None, run_dir: Path | None, **flags: Any) -> None:
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
    """
    given = {key: value for key, value in flags.items() if value is not None}
    resolved, launch = resolve(read_values(job) if job else {}, given, default_launch())
    console = Console(highlight=False)
    with claimed_run_dir(run_dir, resolved.model_name()) as folder:
        with kept_on_failure(console, folder), display_for(console, SystemClock()) as display:
            result = train_here(resolved, launch, folder, display)
        show_summary(console, result, folder, cores())
