"""`lockstep worker`: one worker, which needs nothing but the server's address."""

import functools
import os
import platform
import secrets
from functools import partial
from pathlib import Path

import click

from common.client.client import ClientConfig
from common.client.vocabulary import Exit
from common.data.source import load
from common.files.sanitize import one_line, printable
from common.protocol.messages import NAME_LIMIT, PROTOCOL_VERSION, Join
from common.protocol.numerics import fingerprint
from common.runtime.clock import SystemClock
from common.runtime.environment import cache_home
from common.transport.auth.credentials import Credential
from common.transport.shared_memory.folder import shared_root
from common.transport.zeromq.client import ZeroMqClient
from common.transport.zeromq.ports import dial, wait_for_any
from lockstep.cli.options.keys import KEY_OPTION
from lockstep.cli.options.run import SUPERVISED_OPTION
from lockstep.cli.options.types import seconds
from lockstep.launch.child import ERROR_MARK
from lockstep.launch.endpoints import credential_of
from lockstep.launch.lifetime import ends_with_parent
from worker.shell import WorkerShell
from worker.state import SILENCE_S, WorkerState


@click.command(short_help="Compute for the server at ADDRESS.")
@click.argument("address")
@click.option("--timeout", type=seconds, metavar="SECONDS", help="seconds to wait for a server; without it, for ever")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="where samples are kept that a server sends with --ship-data  [~/.cache/lockstep]",
)
@KEY_OPTION
@SUPERVISED_OPTION
@click.pass_context
def worker(
    context: click.Context,
    address: str,
    timeout: float | None,
    cache: Path | None,
    key: Path | None,
    supervised: Path | None,
) -> None:
    """Compute for the server at ADDRESS until its run is over.

    It may be started before the server, on any machine of the same kind; the job comes from the server. Exit codes: 0
    the run is done, 1 it failed or there is no server, 2 the server refused this worker, 130 interrupted.

    \b
      lockstep worker tcp://192.168.1.7:5555 --key worker-1.key
      lockstep worker ipc:///tmp/lockstep.sock --timeout 60
    """
    credential = credential_of(key, supervised)
    port = dial(address, credential=credential)
    if supervised:
        with ends_with_parent(supervised):
            ended = work(port, address, timeout, credential, cache)
    else:
        say(f"dialling {address}")
        ended = work(port, address, timeout, credential, cache)
    if ended.reason:
        say(f"{ERROR_MARK}{ended.reason}")
    elif not supervised:
        say("the run is done")
    context.exit(ended.code)


def work(
    port: ZeroMqClient,
    address: str,
    timeout_s: float | None,
    credential: Credential = None,
    cache: Path | None = None,
) -> Exit:
    """Work for the server until one of us ends; all servers of a run are shown the same."""
    join = Join(
        protocol=PROTOCOL_VERSION,
        incarnation=secrets.token_hex(8),
        host=one_line(platform.node() or "unknown", NAME_LIMIT),
        pid=os.getpid(),
        fingerprint=fingerprint(),
    )
    silence_s = SILENCE_S if timeout_s is None else timeout_s
    config = ClientConfig(address=address, join=join, timeout_s=timeout_s, silence_s=silence_s)
    dial_others = partial(dial, credential=credential)
    state, load_once = WorkerState(config), functools.cache(load)
    clock, root, kept = SystemClock(), shared_root(), cache or Path(cache_home()) / "lockstep"
    return WorkerShell(state, port, clock, load_once, say, root, dial_others, wait_for_any, port.diagnosis, kept).run()


def say(text: str) -> None:
    """Print a line to standard error: standard output is for results."""
    click.echo(printable(text), err=True)
