"""`lockstep status`: the state of a run, as its server reports it; and questions that follow a run to its leader."""

from contextlib import closing
from pathlib import Path

import click
import msgspec
from rich.console import Console

from lockstep.cli.options.run import KEY_OPTION
from lockstep.cli.options.types import seconds
from lockstep.common.errors import RunError, UnreachableError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import (
    Message,
    Refused,
    ServerMessage,
    StandbyAddress,
    StandbyStatus,
    Status,
    StatusRequest,
)
from lockstep.common.protocol.standby_messages import CommandOutcome
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.auth.credentials import Credential
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.launch.client import HANDSHAKE_S, no_answer
from lockstep.launch.endpoints import credential_of, dial_with, keyed
from lockstep.results.reports.display import epoch_line, figures, in_teams, place, print_plainly, thinned, workers_table

TIMEOUT_OPTION = click.option(
    "--timeout", type=seconds, metavar="SECONDS", default=5.0, help="seconds to wait for an answer  [5]"
)


@click.command(short_help="Show the progress of a run.")
@click.argument("address")
@TIMEOUT_OPTION
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


def ask_run(
    address: str, question: Message, credential: Credential, timeout_s: float, *, is_of_standby: bool = False
) -> Status | CommandOutcome | Refused:
    """Ask the server at an address, or the leader that it names if it is a standby, and return the answer.

    `UnreachableError` if no server answers there. A standby may have another key than the server: each is tried, and
    only its own if the question `is_of_standby`.
    """
    known = keyed(credential, address)
    ahead = list(known[:1] if is_of_standby else (known[-1], *known[:-1]))
    answer, obstacle, asked = None, UnreachableError(""), set[StandbyAddress]()
    while ahead and (server := ahead.pop(0)) not in asked:
        asked.add(server)
        with closing(dial_with(credential, server.address, server.public)) as port:
            found = _ask_one(port, question, timeout_s)
            trouble = None if found is not None else port.diagnosis()
        if found is not None:
            answer, leader = found, None if isinstance(found, Refused) else found.leader
            ahead = [] if leader is None else [leader]
            continue
        has_other_key = trouble is not None and trouble.has_other_key
        # A person has to know the obstacle of the first key, unless another is right and something else is wrong.
        if len(asked) == 1 or (trouble is not None and trouble.is_final and not has_other_key):
            obstacle = no_answer(address, timeout_s, trouble)
        if not has_other_key:
            break
    if answer is None:
        raise obstacle
    return answer


def _ask_one(port: ZeroMqClient, question: Message, timeout_s: float) -> Status | CommandOutcome | Refused | None:
    """Return the answer if it comes in time, None sooner if handshakes fail: the server reports each as rejected."""
    port.send(encode(question))
    clock = SystemClock()
    until = clock.now() + timeout_s
    while (left := until - clock.now()) > 0.0 and not (port.is_failing and _is_hopeless(port)):
        frames = port.receive(min(HANDSHAKE_S, left))
        if frames is not None:
            message, _ = decode(frames, ServerMessage | CommandOutcome)
            if isinstance(message, Status | CommandOutcome | Refused):
                return message
    return None


def _is_hopeless(port: ZeroMqClient) -> bool:
    trouble = port.diagnosis()
    return trouble is not None and trouble.is_final


def standby_line(standby: StandbyStatus) -> str:
    """Return how far a standby is."""
    rest = "" if standby.is_whole else "; it is getting more"
    has = f"has the checkpoint of step {standby.step}" if standby.step else "has no checkpoint yet"
    return f"standby {standby.address} (host {standby.host}) {has}{rest}"


def shard_line(answer: Status, number: int) -> str:
    """Return where a slice of the weights is; the server itself has the first."""
    shard = answer.shards[number]
    return f"slice {number + 2} of {len(answer.shards) + 1} of the weights is at {shard.address} (host {shard.host})"


def show(console: Console, answer: Status) -> None:
    """Print a status for a person."""
    print_plainly(console, *status_lines(answer))
    console.print(workers_table(answer.workers))


def status_lines(answer: Status) -> list[str]:
    """Return the progress of a run: some of its finished epochs, where it is now, and how many peers were rejected."""
    return [
        f"run {answer.run}  model {answer.model}  {answer.phase}",
        *(epoch_line(epoch, answer.epochs) for epoch in thinned(answer.history)),
        place(answer),
        figures(answer),
        *([f"{in_teams(sum(one.processes for one in answer.workers), len(answer.workers))}"] if answer.workers else []),
        *([f"failed: {answer.failure}"] if answer.failure else []),
        *(shard_line(answer, number) for number in range(len(answer.shards))),
        *(standby_line(one) for one in answer.standbys),
        *([f"connections rejected: {answer.refused}"] if answer.refused else []),
        *([f"peers disconnected because they broke the protocol: {answer.broken}"] if answer.broken else []),
    ]
