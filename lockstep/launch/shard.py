"""A shard in this process, over real sockets."""

from lockstep.common.runtime.clock import SystemClock
from lockstep.common.statemachine.client import ClientConfig, Exit
from lockstep.common.transport.limits.rejection_log import RejectionLog
from lockstep.common.transport.shared_memory.folder import shared_root
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.common.transport.zeromq.ports import wait_for_any
from lockstep.common.transport.zeromq.server import ZeroMqServer
from lockstep.launch.client import own_identity, say
from lockstep.launch.endpoints import dialled
from lockstep.ps.shard_process.shell import ShardShell
from lockstep.ps.shard_process.state import SILENCE_S, ShardState


def hold_slice(
    port: ZeroMqServer, upstream: ZeroMqClient, address: str, timeout_s: float | None, rejections: RejectionLog
) -> Exit:
    """Hold a slice of the weights for the server until one of us ends."""
    join = own_identity().shard_join(dialled(port.address))
    shell = ShardShell(
        ShardState(ClientConfig(address=address, join=join, timeout_s=timeout_s, silence_s=SILENCE_S)),
        port,
        upstream,
        SystemClock(),
        say,
        wait_for_any,
        shared_root(),
        upstream.diagnosis,
        rejections,
    )
    return shell.run()
