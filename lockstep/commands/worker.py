"""`lockstep worker`: one worker, which needs nothing but the server's address."""

import os
import platform
import secrets
from functools import cache

import click

from common.clock import SystemClock
from common.data.source import load
from common.messages import PROTOCOL_VERSION, Join
from common.numerics import fingerprint
from common.transport.zeromq import dial
from lockstep.lifeline import hold
from worker.runner import Runner
from worker.state import WorkerFacts, WorkerState


@click.command()
@click.argument("address")
@click.option("--timeout", type=click.FloatRange(0.1), help="seconds to wait for a server; without it, for ever")
@click.option("--supervised", is_flag=True, hidden=True, help="started by `train`: end with stdin")
@click.pass_context
def worker(context: click.Context, address: str, timeout: float | None, supervised: bool) -> None:
    """Compute for the server at ADDRESS until its run is over.

    It may be started before the server, on any machine of the same kind; the job comes from the server.

    \b
        lockstep worker tcp://192.168.1.7:5555
        lockstep worker ipc:///tmp/lockstep.sock --timeout 60
    """
    if supervised:
        hold()
    join = Join(
        protocol=PROTOCOL_VERSION,
        incarnation=secrets.token_hex(8),
        host=platform.node() or "unknown",
        pid=os.getpid(),
        fingerprint=fingerprint(),
    )
    facts = WorkerFacts(address=address, join=join, timeout_s=timeout)
    runner = Runner(WorkerState(facts), dial(address), SystemClock(), cache(load), say)
    ended = runner.run()
    if ended.reason:
        click.echo(f"error: {ended.reason}", err=True)
    context.exit(ended.code)


def say(text: str) -> None:
    """Print a line to standard error: standard output is for results."""
    click.echo(text, err=True)
