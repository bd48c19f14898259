"""`lockstep shard`: another server process of a run, which holds a slice of the weights."""

from contextlib import closing, nullcontext
from pathlib import Path

import click

from common.runtime.numerics import Numerics
from common.transport.limits.rejection_log import RejectionLog
from common.transport.zeromq.ports import dial, serve
from lockstep.cli.options.keys import INSECURE_OPTION, KEYS_OPTION
from lockstep.cli.options.run import NUMERICS_OPTION, SUPERVISED_OPTION
from lockstep.cli.options.types import seconds
from lockstep.launch.child import ERROR_MARK
from lockstep.launch.client import say
from lockstep.launch.endpoints import WARNING, bind_near, lock_of, server_credential
from lockstep.launch.lifetime import ends_with_parent
from lockstep.launch.numerics import begin_with
from lockstep.launch.shard import hold_slice


@click.command(short_help="Hold a slice of the weights for the server at ADDRESS.")
@click.argument("address")
@click.option(
    "--bind",
    metavar="ADDRESS",
    help="where workers reach this shard: tcp://HOST:PORT (port 0: a free one) or ipc://PATH  [next to the server, on "
    "its machine]",
)
@click.option("--timeout", type=seconds, metavar="SECONDS", help="seconds to wait for a server; without it, for ever")
@KEYS_OPTION
@INSECURE_OPTION
@NUMERICS_OPTION
@SUPERVISED_OPTION
@click.pass_context
def shard(
    context: click.Context,
    address: str,
    bind: str | None,
    timeout: float | None,
    keys: Path | None,
    insecure: bool,
    numerics: Numerics | None,
    supervised: Path | None,
) -> None:
    """Hold a slice of the weights for the server at ADDRESS until its run is over.

    That server was started with `--servers`; its run begins once all shards are there, and cannot continue without one.
    What they are to do comes from the server: a shard needs neither the data nor the model. With keys, all servers of
    a run have copies of one folder: they are one server to the workers, and to one another. Exit codes: 0 the run is
    done, 1 it failed or there is no server, 2 the server refused this shard, 130 interrupted.

    \b
      lockstep shard tcp://127.0.0.1:5555
      lockstep shard tcp://192.168.1.7:5555 --bind tcp://192.168.1.8:5556 --keys keys
    """
    if numerics is not None:
        begin_with(numerics)
    with ends_with_parent(supervised) if supervised else nullcontext():
        lock, rejections = lock_of(keys, supervised, is_insecure=insecure), RejectionLog()
        port = serve(bind or bind_near(address), lock=lock, insecure=insecure, rejections=rejections)
        with closing(port):
            if insecure:
                say(WARNING)
            if not supervised:
                say(f"dialling {address}, listening on {port.address}")
            upstream = dial(address, credential=server_credential(keys, supervised))
            ended = hold_slice(port, upstream, address, timeout, rejections)
    if numerics is None and ended.numerics is not None:
        say(f"the run has {ended.numerics} numerics: starts again with these")
        begin_with(ended.numerics)
    if ended.reason:
        say(f"{ERROR_MARK}{ended.reason}")
    elif not supervised:
        say("the run is done")
    context.exit(ended.code)
