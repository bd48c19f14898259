"""A worker in this process, over real sockets."""

import functools
from pathlib import Path

from lockstep.common.data.source import load
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import cache_home, give_way
from lockstep.common.statemachine.client import ClientConfig, Exit
from lockstep.common.transport.auth.credentials import Credential
from lockstep.common.transport.shared_memory.folder import shared_root
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.common.transport.zeromq.ports import dial, wait_for_any
from lockstep.launch.client import own_identity, say
from lockstep.worker.shell import WorkerShell
from lockstep.worker.state import SILENCE_S, WorkerState


def work(
    port: ZeroMqClient, address: str, timeout_s: float | None, credential: Credential = None, cache: Path | None = None
) -> Exit:
    """Work for the server until one of us ends; all servers of a run are shown the same credential."""
    give_way()
    silence_s = SILENCE_S if timeout_s is None else timeout_s
    join = own_identity().worker_join()
    shell = WorkerShell(
        WorkerState(ClientConfig(address=address, join=join, timeout_s=timeout_s, silence_s=silence_s)),
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
    return shell.run()
