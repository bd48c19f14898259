"""Flags that several commands have."""

from pathlib import Path

import click

from lockstep.cli.options.completion import RunPath
from lockstep.cli.options.types import moment, seconds
from lockstep.launch.supervision.channel import ParentLink

#: Passes a command, as its first argument, the link to the process that has started this one.
passes_link = click.make_pass_decorator(ParentLink, ensure=True)


def _open_link(context: click.Context, option: click.Parameter, folder: Path | None) -> Path | None:
    """Report to the process that has started this one, from before anything can go wrong."""
    if folder is not None:
        context.ensure_object(ParentLink).open()
    return folder


RUN_DIR_OPTION = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="new folder for the results  [runs/TIME-MODEL]",
)
RESUME_OPTION = click.option(
    "--resume",
    type=RunPath(is_folder=True),
    metavar="DIR",
    help="resume the run in DIR from its last checkpoint, with any number of workers",
)
SUPERVISED_OPTION = click.option(
    "--supervised",
    type=click.Path(path_type=Path),
    hidden=True,
    callback=_open_link,
    help="started by `train`: report to stdout, end when stdin does, and remove this folder if `train` no longer can",
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
CHECKPOINT_OPTION = click.option(
    "--checkpoint",
    "moment",
    type=moment,
    metavar="WHICH",
    default="last",
    help="weights to use: last, best (of the best epoch), ema (the moving average), or a number of steps  [last]",
)
TRAINING_DATA_OPTION = click.option(
    "--training-data",
    metavar="DATA",
    help="where the run's own data is, if it was moved: its source, or the packed folder  [as in training]",
)
RUN_ARGUMENT = click.argument("run", type=RunPath())
KEYS_OPTION = click.option(
    "--keys",
    type=click.Path(path_type=Path),
    metavar="DIR",
    envvar="LOCKSTEP_KEYS",
    help="admit only workers whose keys are in this folder, which `lockstep keys` makes  [$LOCKSTEP_KEYS]",
)
KEY_OPTION = click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="LOCKSTEP_KEY",
    help="file with the key to connect with; no server but the one it names is trusted  [$LOCKSTEP_KEY]",
)
TIMEOUT_OPTION = click.option(
    "--timeout",
    type=seconds,
    metavar="SECONDS",
    help="seconds to wait for the server, also for one that is restarted  [forever at first, 600 once it was there]",
)
INSECURE_OPTION = click.option(
    "--insecure", is_flag=True, help="accept any peer that can reach the address, without keys and unencrypted"
)
