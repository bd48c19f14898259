"""`lockstep drain`: a server hands its run over to a standby, since a person says so."""

from pathlib import Path

import click

from lockstep.cli.machines.promote import command
from lockstep.cli.machines.status import TIMEOUT_OPTION
from lockstep.cli.options.run import KEY_OPTION
from lockstep.common.protocol.standby_messages import Drain


@click.command(short_help="Hand a run over to its standby.")
@click.argument("address")
@TIMEOUT_OPTION
@KEY_OPTION
def drain(address: str, timeout: float, key: Path | None) -> None:
    """Hand the run of the server at ADDRESS over to a standby, without losing a step, and end that server.

    Its workers go to the standby by themselves. Use it before you stop the server's machine. If a standby listens at
    ADDRESS, the server that leads the run is asked.

    \b
      lockstep drain tcp://192.168.1.7:5555
      lockstep drain tcp://192.168.1.7:5555 --key keys/server.key
    """
    click.echo(command(address, Drain(), timeout, key))
