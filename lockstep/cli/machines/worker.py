"""`lockstep worker`: one worker, which needs nothing but the server's address."""

from contextlib import nullcontext
from pathlib import Path

import click

from lockstep.cli.options.keys import KEY_OPTION
from lockstep.cli.options.run import NUMERICS_OPTION, SUPERVISED_OPTION
from lockstep.cli.options.types import seconds
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.child import ERROR_MARK
from lockstep.launch.client import say
from lockstep.launch.endpoints import credential_of
from lockstep.launch.lifetime import ends_with_parent
from lockstep.launch.numerics import begin_with
from lockstep.launch.worker import work


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
@click.pass_context
def worker(
    context: click.Context,
    address: str,
    timeout: float | None,
    cache: Path | None,
    key: Path | None,
    numerics: Numerics | None,
    supervised: Path | None,
) -> None:
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
    credential = credential_of(key, supervised)
    port = dial(address, credential=credential)
    if not supervised:
        say(f"connecting to {address}")
    with ends_with_parent(supervised) if supervised else nullcontext():
        ended = work(port, address, timeout, credential, cache)
    if numerics is None and ended.numerics is not None:
        say(f"the run has {ended.numerics} numerics: restarting with these")
        begin_with(ended.numerics)
    if ended.reason:
        say(f"{ERROR_MARK}{ended.reason}")
    elif not supervised:
        say("the run is done")
    context.exit(ended.code)
