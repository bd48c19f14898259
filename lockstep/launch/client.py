"""Requests of clients, the end of a client's process, and questions about a run, which follow it to its leader."""

import os
import platform
import secrets
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import click

from lockstep.common.errors import RunError, UnreachableError, UsageError
from lockstep.common.files.sanitize import one_line, printable
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    CORES_LIMIT,
    NAME_LIMIT,
    PROTOCOL_VERSION,
    CallbackDecision,
    Join,
    Message,
    Refused,
    ServerMessage,
    StandbyAddress,
    Status,
    StatusRequest,
)
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.protocol.standby_messages import CommandOutcome, Promote
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import core_numbers, machine_id
from lockstep.common.statemachine.client import Exit
from lockstep.common.statemachine.leader_inquiry import LOOK_S
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.transport.auth.credentials import Credential
from lockstep.common.transport.diagnosis import Diagnosis, Stage
from lockstep.common.transport.port import ClientPort
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.launch.endpoints import dial_with, keyed
from lockstep.launch.lifetime import ends_with_parent
from lockstep.launch.supervision.worker_supervisor import INTERRUPTED, USAGE

#: The line that is printed when a run has ended well.
DONE = "the run is done"


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
    with ends_with_parent(supervised) if supervised else nullcontext():
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


def ask_run(
    address: str, question: Message, credential: Credential, timeout_s: float, *, is_of_standby: bool = False
) -> Status | CommandOutcome | Refused:
    """Ask the server at an address, or the leader that it names if it is a standby, and return the answer.

    `UnreachableError` if no server answers there. A standby may have another key than the server: each is tried, and
    only its own if the question `is_of_standby`.
    """
    *standbys, server = keyed(credential, address)
    search = LeaderSearch((keyed(credential, address)[0],) if is_of_standby else (server, *standbys))
    answer, obstacle, asked = None, None, set[StandbyAddress]()
    while search.server not in asked:
        asked.add(search.server)
        with closing(dial_with(credential, search.server.address, search.server.public)) as port:
            found = _ask_one(port, question, timeout_s)
            trouble = None if found is not None else port.diagnosis()
        if found is None:
            # The first one's: that is what a person has to know.
            obstacle = obstacle or no_answer(address, timeout_s, trouble)
            if trouble is None or trouble.stage is not Stage.KEY:
                break
            search.turn_to(search.following(), 0.0)
            continue
        answer = found
        leader = None if isinstance(found, Refused) else found.leader
        search.turn_to(leader or search.server, 0.0)
    if answer is None:
        assert obstacle is not None  # one server at least was asked
        raise obstacle
    return answer


def _ask_one(port: ZeroMqClient, question: Message, timeout_s: float) -> Status | CommandOutcome | Refused | None:
    """Return the answer if it comes in time, None sooner if handshakes fail: the server reports each as rejected."""
    port.send(encode(question))
    clock = SystemClock()
    until = clock.now() + timeout_s
    while (left := until - clock.now()) > 0.0 and not (port.is_failing and _has_other_key(port)):
        frames = port.receive(min(LOOK_S, left))
        if frames is not None:
            message, _ = decode(frames, ServerMessage | CommandOutcome)
            if isinstance(message, Status | CommandOutcome | Refused):
                return message
    return None


def _has_other_key(port: ZeroMqClient) -> bool:
    trouble = port.diagnosis()
    return trouble is not None and trouble.stage is Stage.KEY


@dataclass
class StatusClient:
    """An observer's connection to a server."""

    port: ClientPort
    #: Whether a question is on its way: another one would only wait behind it.
    is_waiting: bool = False

    def ask(self, timeout_s: float) -> Status | None:
        """Return the status of the run, None if no answer came in time: the next call continues to wait for it."""
        if not self.is_waiting:
            self.port.send(encode(StatusRequest()))
            self.is_waiting = True
        frames = self.port.receive(timeout_s)
        if frames is None:
            return None
        self.is_waiting = False
        message, _ = decode(frames, ServerMessage | CommandOutcome)
        return message if isinstance(message, Status) else None

    def decide(self, decision: CallbackDecision) -> None:
        """Send what callbacks decide; if it is lost, the status still says that the run is paused."""
        self.port.send(encode(decision))

    def promote(self) -> None:
        """Let a standby lead its run; the status shows whether it does."""
        self.port.send(encode(Promote()))

    def close(self) -> None:
        """Close the connection."""
        self.port.close()
