"""`lockstep promote`: a standby leads its run, since a person says so; and how a server is sent such a command."""

from contextlib import closing
from pathlib import Path

import click

from lockstep.cli.options.run import KEY_OPTION
from lockstep.cli.options.types import seconds
from lockstep.common.errors import RunError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Message, Refused
from lockstep.common.protocol.standby_messages import CommandOutcome, Promote
from lockstep.common.runtime.clock import SystemClock
from lockstep.launch.client import no_answer
from lockstep.launch.endpoints import credential_of, dial_with, keyed

TIMEOUT_OPTION = click.option(
    "--timeout", type=seconds, metavar="SECONDS", default=5.0, help="seconds to wait for an answer  [5]"
)


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
    credential = credential_of(key, None)
    # A standby is asked with its own key, and a server with the one that the file names.
    public = keyed(credential, address)[0].public if isinstance(message, Promote) else ""
    with closing(dial_with(credential, address, public)) as port:
        port.send(encode(message))
        clock = SystemClock()
        until = clock.now() + timeout_s
        while (left := until - clock.now()) > 0.0:
            frames = port.receive(left)
            if frames is None:
                continue
            answer, _ = decode(frames, CommandOutcome | Refused)
            if isinstance(answer, CommandOutcome):
                if not answer.is_accepted:
                    raise RunError(answer.text)
                return answer.text
            raise RunError(answer.reason if isinstance(answer, Refused) else "the server gave no answer")
        raise no_answer(address, timeout_s, port.diagnosis())
