"""`lockstep worker`: one worker, which needs nothing but the server's address."""

import functools
from pathlib import Path

import click

from lockstep.cli.options.run import KEY_OPTION, NUMERICS_OPTION, SUPERVISED_OPTION
from lockstep.cli.options.types import seconds
from lockstep.common.data.source import load
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import cache_home, give_way
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.statemachine.client import ClientConfig
from lockstep.common.transport.shared_memory.folder import shared_root
from lockstep.common.transport.zeromq.ports import dial, wait_for_any
from lockstep.launch.client import own_join, say, take_part
from lockstep.launch.endpoints import credential_of
from lockstep.launch.numerics import begin_with
from lockstep.worker.shell import WorkerShell
from lockstep.worker.state import SILENCE_S, WorkerState


@click.command(short_help="Compute for the server at an address.")
@click.argument("address")
@click.option("--timeout", type=seconds, metavar="SECONDS", help="seconds to wait for the server  [forever]")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="folder for samples from a server with --ship-data  [~/.cache/lockstep]",
)
@KEY_OPTION
@NUMERICS_OPTION
@SUPERVISED_OPTION
def worker(
    address: str,
    timeout: float | None,
    cache: Path | None,
    key: Path | None,
    numerics: Numerics | None,
    supervised: Path | None,
) -> int:
    """Compute for the server at ADDRESS until its run is over.

    The job comes from the server. A worker may start before the server. It runs on any machine of the same kind, or
    with portable numerics on any x86-64 machine with AVX2. Exit codes: 0 the run is done, 1 the run failed or no server
    answered, 2 the server refused this worker, 130 interrupted.

    \b
      lockstep worker tcp://192.168.1.7:5555 --key worker-1.key
      lockstep worker ipc:///tmp/lockstep.sock --timeout 60
    """
    if numerics is not None:
        begin_with(numerics)
    # Shown to all servers of the run.
    credential = credential_of(key, supervised)
    port = dial(address, credential=credential)
    if not supervised:
        say(f"connecting to {address}")
    give_way()
    silence_s = SILENCE_S if timeout is None else timeout
    shell = WorkerShell(
        WorkerState(ClientConfig(address=address, join=own_join(), timeout_s=timeout, silence_s=silence_s)),
        port,
        SystemClock(),
        functools.cache(load),
        say,
        shared_root(),
        functools.partial(dial, credential=credential),
        wait_for_any,
        port.diagnosis,
        cache or Path(cache_home()) / "lockstep",
    )
    return take_part(shell.run, numerics, supervised)
