"""Flags that say who is admitted, and as whom a process joins."""

from pathlib import Path

import click

KEYS_OPTION = click.option(
    "--keys",
    type=click.Path(path_type=Path),
    metavar="DIR",
    envvar="LOCKSTEP_KEYS",
    help="admit only those whose keys are listed in this folder of `lockstep keys`  [$LOCKSTEP_KEYS]",
)
KEY_OPTION = click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="LOCKSTEP_KEY",
    help="use the key in this file, and talk to no server but its own  [$LOCKSTEP_KEY]",
)
INSECURE_OPTION = click.option("--insecure", is_flag=True, help="listen where others can reach it, without keys")
