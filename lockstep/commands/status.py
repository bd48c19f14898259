"""`lockstep status`: how a run stands, asked of its server."""

import click
import msgspec
from rich.console import Console

from common.messages import Status
from common.transport.zeromq import dial
from lockstep.display import epoch_line, step_line, workers_table
from lockstep.status_client import ask_once


@click.command()
@click.argument("address")
@click.option("--timeout", type=click.FloatRange(0.1), default=5.0, show_default=True, help="seconds to wait")
@click.option("--json", "as_json", is_flag=True, help="print the whole status as JSON")
def status(address: str, timeout: float, as_json: bool) -> None:
    """Tell how the run of the server at ADDRESS stands, and for whom it waits."""
    port = dial(address)
    try:
        answer = ask_once(port, address, timeout)
    finally:
        port.close()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        show(Console(highlight=False), answer)


def show(console: Console, answer: Status) -> None:
    """Print a status for a person."""
    ready = sum(worker.state in ("ready", "computing") for worker in answer.workers)
    for line in (
        f"run {answer.run}  model {answer.model}  {answer.phase}",
        f"{ready} workers ready, {answer.min_workers} needed to begin",
        *(epoch_line(epoch, answer.epochs) for epoch in answer.history),
        step_line(answer),
        *([f"failed: {answer.failure}"] if answer.failure else []),
    ):
        console.print(line, markup=False, soft_wrap=True)
    console.print(workers_table(answer.workers))
