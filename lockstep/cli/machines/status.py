"""`lockstep status`: the state of a run, as its server reports it."""

from contextlib import closing
from pathlib import Path

import click
import msgspec
from rich.console import Console

from lockstep.cli.options.run import KEY_OPTION
from lockstep.cli.options.types import seconds
from lockstep.common.protocol.messages import StandbyStatus, Status
from lockstep.common.transport.auth.credentials import Credential
from lockstep.common.transport.diagnosis import Stage
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.launch.client import StatusClient, no_answer
from lockstep.launch.endpoints import credential_of, dial_with, keyed
from lockstep.results.reports.display import epoch_line, figures, in_teams, place, print_plainly, workers_table

#: Seconds after which a handshake has failed if the server has another key.
HANDSHAKE_S = 1.0

#: How often it is looked at within these seconds.
LOOKS = 20


@click.command(short_help="Show the progress of a run.")
@click.argument("address")
@click.option("--timeout", type=seconds, metavar="SECONDS", default=5.0, help="seconds to wait for an answer  [5]")
@KEY_OPTION
@click.option("--json", "as_json", is_flag=True, help="print the whole status as JSON")
def status(address: str, timeout: float, key: Path | None, as_json: bool) -> None:
    """Show the progress of the run at ADDRESS, its workers, and what it waits for.

    The exit code is 1 if no server answers.

    \b
      lockstep status tcp://127.0.0.1:5555
      lockstep status tcp://192.168.1.7:5555 --key keys/server.key
    """
    answer = ask(address, timeout, credential_of(key, None))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        show(Console(highlight=False), answer)


def ask(address: str, timeout_s: float, credential: Credential) -> Status:
    """Return what the server at an address reports: one with the key that is expected, or with that of a standby."""
    *standbys, server = keyed(credential, address)
    obstacle = None
    # The server's first: what prevents that one is what a person has to know.
    for one in (server, *standbys):
        with closing(dial_with(credential, address, one.public)) as port:
            client = StatusClient(port)
            first_s = min(timeout_s, HANDSHAKE_S)
            answer, found = _first_answer(client, port, first_s), None
            is_other_key = answer is None and (found := port.diagnosis()) is not None and found.stage is Stage.KEY
            if answer is None and not is_other_key:
                answer = client.ask(timeout_s - first_s)
            if answer is not None:
                return answer
            obstacle = obstacle or no_answer(address, timeout_s, port.diagnosis())
        if not is_other_key:
            break
    assert obstacle is not None  # the server's key at least was tried
    raise obstacle


def _first_answer(client: StatusClient, port: ZeroMqClient, timeout_s: float) -> Status | None:
    """Return the answer if it comes in time, None sooner if handshakes fail: the server reports each as rejected."""
    for _ in range(LOOKS):
        answer = client.ask(timeout_s / LOOKS)
        if answer is not None or port.is_failing:
            return answer
    return None


def standby_line(standby: StandbyStatus) -> str:
    """Return how far a standby is."""
    rest = "" if standby.is_whole else "; it is getting more"
    has = f"has the checkpoint of step {standby.step}" if standby.step else "has no checkpoint yet"
    return f"standby {standby.address} (host {standby.host}) {has}{rest}"


def show(console: Console, answer: Status) -> None:
    """Print a status for a person."""
    print_plainly(console, *status_lines(answer))
    console.print(workers_table(answer.workers))


def status_lines(answer: Status) -> list[str]:
    """Return the progress of a run: its finished epochs, where it is now, and how many peers were rejected."""
    return [
        f"run {answer.run}  model {answer.model}  {answer.phase}",
        *(epoch_line(epoch, answer.epochs) for epoch in answer.history),
        place(answer),
        figures(answer),
        *([f"{in_teams(sum(one.processes for one in answer.workers), len(answer.workers))}"] if answer.workers else []),
        *([f"failed: {answer.failure}"] if answer.failure else []),
        *(standby_line(one) for one in answer.standbys),
        *([f"connections rejected: {answer.refused}"] if answer.refused else []),
        *([f"peers disconnected because they broke the protocol: {answer.broken}"] if answer.broken else []),
    ]
