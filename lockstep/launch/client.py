"""The clients of a server: a worker, a shard, and an observer that asks for the status of the run."""

import functools
import os
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path

import click

from common.client.client import ClientConfig
from common.client.events_and_effects import Exit
from common.data.source import load
from common.errors import UnreachableError
from common.files.sanitize import one_line, printable
from common.protocol.codec import decode, encode
from common.protocol.fingerprint import fingerprint
from common.protocol.messages import (
    NAME_LIMIT,
    PROTOCOL_VERSION,
    CallbackDecision,
    Join,
    ServerMessage,
    Status,
    StatusRequest,
)
from common.protocol.shard_messages import ShardJoin
from common.runtime.clock import SystemClock
from common.runtime.environment import cache_home
from common.transport.auth.credentials import Credential
from common.transport.limits.rejection_log import RejectionLog
from common.transport.port import ClientPort
from common.transport.shared_memory.folder import shared_root
from common.transport.zeromq.client import ZeroMqClient
from common.transport.zeromq.ports import dial, wait_for_any
from common.transport.zeromq.server import ZeroMqServer
from lockstep.launch.endpoints import dialled
from ps.shard_process.shell import ShardShell
from ps.shard_process.state import SILENCE_S as SHARD_SILENCE_S
from ps.shard_process.state import ShardState
from worker.shell import WorkerShell
from worker.state import SILENCE_S, WorkerState


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """Which process joins a run."""

    incarnation: str
    host: str
    pid: int

    def worker_join(self) -> Join:
        """Return the request to join as a worker."""
        return Join(
            protocol=PROTOCOL_VERSION,
            incarnation=self.incarnation,
            host=self.host,
            pid=self.pid,
            fingerprint=fingerprint(),
        )

    def shard_join(self, address: str) -> ShardJoin:
        """Return the request to join as a shard, which workers reach at an address."""
        return ShardJoin(
            protocol=PROTOCOL_VERSION,
            incarnation=self.incarnation,
            host=self.host,
            pid=self.pid,
            fingerprint=fingerprint(),
            address=address,
        )


def own_identity() -> ProcessIdentity:
    """Return a new incarnation of this process."""
    host = one_line(platform.node() or "unknown", NAME_LIMIT)
    return ProcessIdentity(incarnation=secrets.token_hex(8), host=host, pid=os.getpid())


def work(
    port: ZeroMqClient, address: str, timeout_s: float | None, credential: Credential = None, cache: Path | None = None
) -> Exit:
    """Work for the server until one of us ends; all servers of a run are shown the same credential."""
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


def hold_slice(
    port: ZeroMqServer, upstream: ZeroMqClient, address: str, timeout_s: float | None, rejections: RejectionLog
) -> Exit:
    """Hold a slice of the weights for the server until one of us ends."""
    join = own_identity().shard_join(dialled(port.address))
    shell = ShardShell(
        ShardState(ClientConfig(address=address, join=join, timeout_s=timeout_s, silence_s=SHARD_SILENCE_S)),
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


def say(text: str) -> None:
    """Print a line to standard error: standard output is for results."""
    click.echo(printable(text), err=True)


@dataclass
class StatusClient:
    """An observer's connection to a server."""

    port: ClientPort
    #: Whether a question is on its way: another one would only wait behind it.
    is_waiting: bool = False

    def ask(self, timeout_s: float) -> Status | None:
        """Return how the run stands, None if no answer came in time: the next call waits on for it."""
        if not self.is_waiting:
            self.port.send(encode(StatusRequest()))
            self.is_waiting = True
        frames = self.port.receive(timeout_s)
        if frames is None:
            return None
        self.is_waiting = False
        message, _ = decode(frames, ServerMessage)
        return message if isinstance(message, Status) else None

    def decide(self, decision: CallbackDecision) -> None:
        """Send what callbacks decide; if it is lost, the status still says that the run is paused."""
        self.port.send(encode(decision))

    def close(self) -> None:
        """Close the connection."""
        self.port.close()


def ask_once(port: ClientPort, address: str, timeout_s: float) -> Status:
    """Return how the run at `address` stands; `UnreachableError` if nobody answers in time."""
    status = StatusClient(port).ask(timeout_s)
    if status is None:
        raise UnreachableError(f"no server answered at {address} within {timeout_s:g} s")
    return status
