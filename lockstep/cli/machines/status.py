"""`lockstep status`: the state of a run, as its server reports it."""

from pathlib import Path

import click
import msgspec
from rich.console import Console

from lockstep.cli.options.run import KEY_OPTION
from lockstep.cli.options.types import seconds
from lockstep.common.errors import RunError
from lockstep.common.protocol.messages import StandbyStatus, Status, StatusRequest
from lockstep.launch.client import ask_run
from lockstep.launch.endpoints import credential_of
from lockstep.results.reports.display import epoch_line, figures, in_teams, place, print_plainly, workers_table


@click.command(short_help="Show the progress of a run.")
@click.argument("address")
@click.option("--timeout", type=seconds, metavar="SECONDS", default=5.0, help="seconds to wait for an answer  [5]")
@KEY_OPTION
@click.option("--json", "as_json", is_flag=True, help="print the whole status as JSON")
def status(address: str, timeout: float, key: Path | None, as_json: bool) -> None:
    """Show the progress of the run at ADDRESS, its workers, and what it waits for.

    If a standby listens there, the server that leads the run is asked. The exit code is 1 if no server answers.

    \b
      lockstep status tcp://127.0.0.1:5555
      lockstep status tcp://192.168.1.7:5555 --key keys/server.key
    """
    answer = ask_run(address, StatusRequest(), credential_of(key, None), timeout)
    if not isinstance(answer, Status):
        raise RunError("the server gave no status")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        show(Console(highlight=False), answer)


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
