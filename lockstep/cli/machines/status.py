"""`lockstep status`: the state of a run, as its server reports it."""

from contextlib import closing
from pathlib import Path

import click
import msgspec
from rich.console import Console

from lockstep.cli.options.run import KEY_OPTION
from lockstep.cli.options.types import seconds
from lockstep.common.errors import RunError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Refused, ServerMessage, Status, StatusRequest
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.auth.credentials import Credential
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.client import HANDSHAKE_S, no_answer
from lockstep.launch.endpoints import credential_of
from lockstep.results.display import epoch_line, figures, in_teams, place, print_plainly, thinned, workers_table


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
    answer = ask_run(address, credential_of(key, None), timeout)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        show(Console(highlight=False), answer)


def ask_run(address: str, credential: Credential, timeout_s: float) -> Status:
    """Ask the server at an address for the status of its run; `UnreachableError` if it does not answer in time."""
    with closing(dial(address, credential=credential)) as port:
        answer = _ask(port, timeout_s)
        if answer is None:
            raise no_answer(address, timeout_s, port.diagnosis())
    return answer


def _ask(port: ZeroMqClient, timeout_s: float) -> Status | None:
    """Return the answer if it comes in time, None sooner if handshakes fail: the server reports each as rejected."""
    port.send(encode(StatusRequest()))
    clock = SystemClock()
    until = clock.now() + timeout_s
    while (left := until - clock.now()) > 0.0 and not (port.is_failing and _is_hopeless(port)):
        frames = port.receive(min(HANDSHAKE_S, left))
        if frames is not None:
            message, _ = decode(frames, ServerMessage)
            if isinstance(message, Status):
                return message
            if isinstance(message, Refused):
                raise RunError(f"the server gave no status: {message.reason}")
    return None


def _is_hopeless(port: ZeroMqClient) -> bool:
    trouble = port.diagnosis()
    return trouble is not None and trouble.is_final


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
        *([f"connections rejected: {answer.refused}"] if answer.refused else []),
        *([f"peers disconnected because they broke the protocol: {answer.broken}"] if answer.broken else []),
    ]
