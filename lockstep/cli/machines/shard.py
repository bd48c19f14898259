"""`lockstep shard`: another server process of a run, which holds a slice of the weights."""

from contextlib import closing
from pathlib import Path

import click

from lockstep.cli.options.run import INSECURE_OPTION, KEYS_OPTION, SUPERVISED_OPTION, TIMEOUT_OPTION, passes_link
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import demand_open_files
from lockstep.common.statemachine.client import ClientConfig
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.zeromq.ports import PortPoller, dial, serve
from lockstep.launch.client import own_join, say, shard_join, take_part
from lockstep.launch.endpoints import WARNING, bind_near, credential_of, dialled, lock_of, server_key_in
from lockstep.launch.supervision.channel import ParentLink
from lockstep.ps.shard.shell import ShardShell
from lockstep.ps.shard.state import ShardState


@click.command(short_help="Hold a slice of the weights for a server.")
@click.argument("address")
@click.option(
    "--bind",
    metavar="ADDRESS",
    help="address for workers: tcp://HOST:PORT (port 0: any free one) or ipc://PATH  [any port of the server's host, "
    "if this is the same machine]",
)
@TIMEOUT_OPTION
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

    Start the server with `--servers` first. Its run begins when all shards have joined. If a shard is lost, start it
    again with the same command: the run waits for it, and resumes from its last checkpoint. A shard needs neither the
    data nor the model. With keys, copy the folder of keys from the server to each shard: to the workers, they are all
    one server. Exit codes: 0 the run is done, 1 the run failed or no server answered, 2 the server refused this shard,
    130 interrupted.

    \b
      lockstep shard tcp://127.0.0.1:5555
      lockstep shard tcp://10.0.0.7:5555 --bind tcp://10.0.0.8:5556 --keys keys
    """
    demand_open_files()
    lock, rejections = lock_of(keys, supervised, is_insecure=insecure), RejectionLog()
    credential = credential_of(server_key_in(keys), supervised)
    with closing(serve(bind or bind_near(address), lock=lock, insecure=insecure, rejections=rejections)) as port:
        if insecure:
            say(WARNING)
        if not supervised:
            say(f"connecting to {address}, listening on {port.address}")
        join = shard_join(own_join(), dialled(port.address))
        shell = ShardShell(
            ShardState(ClientConfig(address=address, join=join, timeout_s=timeout)),
            port,
            dial(address, credential=credential),
            SystemClock(),
            link.say,
            PortPoller(),
            rejections,
        )
        return take_part(shell.run, supervised)
