"""`lockstep promote`: a standby leads its run, since a person says so; and how a server is sent such a command."""

from pathlib import Path

import click

from lockstep.cli.machines.status import TIMEOUT_OPTION, ask_run
from lockstep.cli.options.run import KEY_OPTION
from lockstep.common.errors import RunError
from lockstep.common.protocol.messages import Message, Refused, Status
from lockstep.common.protocol.standby_messages import CommandOutcome, Promote
from lockstep.launch.endpoints import credential_of


@click.command(short_help="Let a standby lead its run at once.")
@click.argument("address")
@TIMEOUT_OPTION
@KEY_OPTION
def promote(address: str, timeout: float, key: Path | None) -> None:
    """Let the standby at ADDRESS lead its run at once, whatever has become of the server.

    Workers find it by themselves. A server that still leads the run ends as soon as it hears of that.

    \b
      lockstep promote tcp://192.168.1.8:5555
      lockstep promote tcp://192.168.1.8:5555 --key standby-1.key
    """
    click.echo(command(address, Promote(), timeout, key))


def command(address: str, message: Message, timeout_s: float, key: Path | None) -> str:
    """Send a command to a server; return its answer. `RunError` if it does not."""
    answer = ask_run(address, message, credential_of(key, None), timeout_s, is_of_standby=isinstance(message, Promote))
    if isinstance(answer, CommandOutcome) and answer.is_accepted:
        return answer.text
    if isinstance(answer, Status):
        raise RunError("the server gave no answer")
    raise RunError(answer.reason if isinstance(answer, Refused) else answer.text)
