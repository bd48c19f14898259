"""`lockstep shard`: another server process of a run, which holds a slice of the weights."""

from contextlib import closing
from functools import partial
from pathlib import Path

import click

from lockstep.cli.options.run import INSECURE_OPTION, KEYS_OPTION, SUPERVISED_OPTION, passes_link
from lockstep.cli.options.types import seconds
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import demand_open_files
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.zeromq.ports import PortPoller, serve, server_at
from lockstep.launch.client import client_config, own_join, say, shard_join, take_part
from lockstep.launch.endpoints import WARNING, bind_near, credential_of, dial_with, dialled, lock_of, server_key_in
from lockstep.launch.supervision.channel import ParentLink
from lockstep.ps.shard.shell import ShardShell
from lockstep.ps.shard.state import SILENCE_S, ShardState


@click.command(short_help="Hold a slice of the weights for a server.")
@click.argument("address")
@click.option(
    "--bind",
    metavar="ADDRESS",
    help="address for workers: tcp://HOST:PORT (port 0: any free one) or ipc://PATH  [any port of the server's host, "
    "if this is the same machine]",
)
@click.option("--timeout", type=seconds, metavar="SECONDS", help="seconds to wait for the server  [forever]")
@KEYS_OPTION
@INSECURE_OPTION
@SUPERVISED_OPTION
@passes_link
def shard(
    link: ParentLink,
    address: str,
    bind: str | None,
    timeout: float | None,
    keys: Path | None,
    insecure: bool,
    supervised: Path | None,
) -> int:
    """Hold a slice of the weights for the server at ADDRESS until its run is over.

    Start the server with `--servers` first. Its run begins when all shards have joined, and cannot continue without any
    of them. With `--spread`, it begins and continues without shards, and these get slices when it is quicker so. A
    shard needs neither the data nor the model. With keys, copy the folder of keys from the server to each shard: to the
    workers, they are all one server. If the run has standbys, ADDRESS may be several addresses with commas between
    them: that of the server first. Exit codes: 0 the run is done, 1 the run failed or no server answered, 2 the server
    refused this shard, 130 interrupted.

    \b
      lockstep shard tcp://127.0.0.1:5555
      lockstep shard tcp://10.0.0.7:5555 --bind tcp://10.0.0.8:5556 --keys keys
    """
    demand_open_files()
    first, *others = address.split(",")
    for other in others:
        # One that is malformed is reported before anything is started.
        server_at(other)
    lock, rejections = lock_of(keys, supervised, is_insecure=insecure), RejectionLog()
    credential = credential_of(server_key_in(keys), supervised)
    dial_server = partial(dial_with, credential)
    with closing(serve(bind or bind_near(first), lock=lock, insecure=insecure, rejections=rejections)) as port:
        if insecure:
            say(WARNING)
        if not supervised:
            say(f"connecting to {address}, listening on {port.address}")
        upstream = dial_server(first)
        join = shard_join(own_join(), dialled(port.address))
        config = client_config([first, *others], credential, join, timeout, SILENCE_S)
        shell = ShardShell(
            ShardState(config),
            port,
            upstream,
            dial_server,
            SystemClock(),
            link.say,
            PortPoller(),
            rejections,
        )
        return take_part(shell.run, supervised)
