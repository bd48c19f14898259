"""`lockstep worker`: one worker, which needs nothing but the server's address."""

import os
import platform
import secrets
from functools import cache
from pathlib import Path

import click

from common.clock import SystemClock
from common.data.source import load
from common.messages import PROTOCOL_VERSION, Join
from common.numerics import fingerprint
from common.transport.port import ClientPort
from common.transport.shared_folder import shared_root
from common.transport.zeromq import dial, wait_for_any
from lockstep.commands.param_types import seconds
from lockstep.commands.run_options import SUPERVISED_OPTION
from lockstep.lifeline import held
from lockstep.process_log import ERROR_MARK
from worker.effects import Exit
from worker.runner import Runner
from worker.state import WorkerFacts, WorkerState


@click.command(short_help="Compute for the server at ADDRESS.")
@click.argument("address")
@click.option("--timeout", type=seconds, metavar="SECONDS", help="seconds to wait for a server; without it, for ever")
@SUPERVISED_OPTION
@click.pass_context
def worker(context: click.Context, address: str, timeout: float | None, supervised: Path | None) -> None:
    """Compute for the server at ADDRESS until its run is over.

    It may be started before the server, on any machine of the same kind; the job comes from the server. Exit codes: 0
    the run is done, 1 it failed or there is no server, 2 the server refused this worker, 130 interrupted.

    \b
      lockstep worker tcp://192.168.1.7:5555
      lockstep worker ipc:///tmp/lockstep.sock --timeout 60
    """
    port = dial(address)
    if supervised:
        with held(supervised):
            ended = work(port, address, timeout)
    else:
        say(f"dialling {address}")
        ended = work(port, address, timeout)
    if ended.reason:
        say(f"{ERROR_MARK}{ended.reason}")
    elif not supervised:
        say("the run is done")
    context.exit(ended.code)


def work(port: ClientPort, address: str, timeout_s: float | None) -> Exit:
    """Work for the server until one of us ends."""
    join = Join(
        protocol=PROTOCOL_VERSION,
        incarnation=secrets.token_hex(8),
        host=platform.node() or "unknown",
        pid=os.getpid(),
        fingerprint=fingerprint(),
    )
    facts = WorkerFacts(address=address, join=join, timeout_s=timeout_s)
    return Runner(WorkerState(facts), port, SystemClock(), cache(load), say, shared_root(), dial, wait_for_any).run()


def say(text: str) -> None:
    """Print a line to standard error: standard output is for results."""
    click.echo(text, err=True)
