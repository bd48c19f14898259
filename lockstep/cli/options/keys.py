"""Flags that say who is admitted, and as whom a process joins."""

from pathlib import Path

import click

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
INSECURE_OPTION = click.option(
    "--insecure", is_flag=True, help="accept anybody who can reach the address, without keys and unencrypted"
)
