"""Requests of clients, the end of a client's process, and an observer, which asks for the status of the run."""

import os
import platform
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from lockstep.common.errors import Diagnosis, RunError, UnreachableError, UsageError
from lockstep.common.files.sanitize import one_line, printable
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    CORES_LIMIT,
    NAME_LIMIT,
    PROTOCOL_VERSION,
    CallbackDecision,
    Join,
    ServerMessage,
    Status,
    StatusRequest,
)
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.environment import core_numbers, machine_id
from lockstep.common.statemachine.client import Exit
from lockstep.common.transport.port import ClientPort, PeerSlow
from lockstep.launch.lifetime import ends_with_parent
from lockstep.launch.supervision.restarts import INTERRUPTED, USAGE

#: The line that is printed when a run has ended well.
DONE = "the run is done"

#: Seconds between two looks for failed handshakes: the server has another key then, and a line for each in its log.
HANDSHAKE_S = 0.05

#: Seconds after which an observer counts a server that does not answer as gone.
SILENCE_S = 5.0


def worker_join(
    incarnation: str, host: str, pid: int, machine: str = "", cores: Sequence[int] = (), processes: int = 1
) -> Join:
    """Return the request of a process to join a run as a worker, with the facts about its host."""
    return Join(
        protocol=PROTOCOL_VERSION,
        incarnation=incarnation,
        host=host,
        pid=pid,
        fingerprint=fingerprint(),
        machine=machine,
        cores=list(cores),
        processes=processes,
    )


def shard_join(worker: Join, address: str) -> ShardJoin:
    """Return the request of the same process to join as a shard, which workers reach at an address."""
    return ShardJoin(
        protocol=worker.protocol,
        incarnation=worker.incarnation,
        host=worker.host,
        pid=worker.pid,
        fingerprint=worker.fingerprint,
        address=address,
    )


def own_join(processes: int = 1) -> Join:
    """Return the request of this process, as a new incarnation, to join a run as a worker of so many processes."""
    host = one_line(platform.node() or "unknown", NAME_LIMIT)
    machine, numbers = machine_id() or host, core_numbers()[:CORES_LIMIT]
    return worker_join(secrets.token_hex(8), host, os.getpid(), machine, numbers, processes)


def say(text: str) -> None:
    """Print a line to standard error: standard output is for results."""
    click.echo(printable(text), err=True)


def take_part(join: Callable[[], Exit], supervised: Path | None) -> int:
    """Take part in a run until this process or the run ends, and return the exit code; raise as `conclude`."""
    with ends_with_parent(supervised):
        ended = join()
    return conclude(ended, is_silent=supervised is not None)


def conclude(ended: Exit, *, is_silent: bool) -> int:
    """Return the exit code of a process that has taken part in a run, and report its end unless it is silent.

    Raise why it failed, if it has a reason: a `UsageError`, a `RunError` or a `KeyboardInterrupt`.
    """
    if ended.reason and ended.code == INTERRUPTED:
        raise KeyboardInterrupt
    if ended.reason and ended.code == USAGE:
        raise UsageError(ended.reason)
    if ended.reason:
        raise RunError(ended.reason)
    if not is_silent:
        say(DONE)
    return ended.code


def no_answer(address: str, timeout_s: float, trouble: Diagnosis | None) -> UnreachableError:
    """Return the error of a server that has not answered: what prevents it if that is certain, or else both."""
    if trouble is not None and trouble.is_final:
        return UnreachableError(trouble.text)
    text = f"no server answered at {address} within {timeout_s:g} s"
    return UnreachableError(text if trouble is None else f"{text}; {trouble.text}")


@dataclass
class StatusClient:
    """An observer's connection to a server, also to one that is restarted at its address."""

    port: ClientPort
    clock: Clock
    #: When the question was sent that is on its way, None if none is: another one would only wait behind it.
    _asked: float | None = None

    def ask(self, timeout_s: float) -> Status | None:
        """Return the status of the run, None if no answer came in time: the next call continues to wait for it."""
        now = self.clock.now()
        # A question may have been lost with an earlier process there.
        if self._asked is None or now > self._asked + SILENCE_S:
            with suppress(PeerSlow):
                self.port.send(encode(StatusRequest()))
            self._asked = now
        frames = self.port.receive(timeout_s)
        if frames is None:
            return None
        self._asked = None
        message, _ = decode(frames, ServerMessage)
        return message if isinstance(message, Status) else None

    def decide(self, decision: CallbackDecision) -> None:
        """Send what callbacks decide; if it is lost, the status still says that the run is paused."""
        self.port.send(encode(decision))

    def close(self) -> None:
        """Close the connection."""
        self.port.close()
