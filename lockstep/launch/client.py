"""Requests of clients, the end of a client's process, and an observer, which asks for the status of the run."""

import os
import platform
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

from lockstep.common.errors import (
    AddressError,
    Diagnosis,
    RemoteProtocolError,
    RunError,
    UnreachableError,
    UsageError,
)
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
    StandbyAddress,
    Status,
    StatusRequest,
)
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.protocol.standby_messages import CommandOutcome, Promote
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.environment import core_numbers, machine_id
from lockstep.common.statemachine.client import ClientConfig, Exit
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.transport.auth.credentials import Credential
from lockstep.common.transport.port import ClientPort, Dial, PeerGone, PeerSlow
from lockstep.launch.endpoints import keyed
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
        machine=worker.machine,
    )


def own_join(processes: int = 1) -> Join:
    """Return the request of this process, as a new incarnation, to join a run as a worker of so many processes."""
    host = one_line(platform.node() or "unknown", NAME_LIMIT)
    machine, numbers = machine_id() or host, core_numbers()[:CORES_LIMIT]
    return worker_join(secrets.token_hex(8), host, os.getpid(), machine, numbers, processes)


def client_config(
    addresses: Sequence[str], credential: Credential, join: Join | ShardJoin, timeout_s: float | None, silence_s: float
) -> ClientConfig:
    """Return how a process finds its server at one of these addresses, of which standbys may have keys of their own."""
    first, *others = addresses
    return ClientConfig(
        address=first,
        join=join,
        others=tuple(one for other in others for one in keyed(credential, other)),
        keyed=keyed(credential, first)[:-1],
        timeout_s=timeout_s,
        silence_s=silence_s,
    )


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


@dataclass
class RunObserver:
    """An observer that follows a run: it asks the server that leads it, and after a takeover the standby that does."""

    address: str
    credential: Credential
    dial: Dial
    clock: Clock
    search: LeaderSearch = field(init=False)
    client: StatusClient = field(init=False)

    def __post_init__(self) -> None:
        *standbys, server = keyed(self.credential, self.address)
        self.search = LeaderSearch((server, *standbys))
        self.search.on_message(self.clock.now())
        self.client = StatusClient(self.dial(server.address, server.public))

    def ask(self, timeout_s: float) -> Status | None:
        """Return the status of the run, None if no server that leads it has answered in time.

        The next call then asks the leader that a standby has named, or another server if this one has been silent.
        """
        try:
            answer = self.client.ask(timeout_s)
        except (PeerGone, PeerSlow, RemoteProtocolError):
            answer = None
        now, search = self.clock.now(), self.search
        if answer is not None and not answer.is_standby:
            self._on_leader(answer, now)
            return answer
        leader = None if answer is None else answer.leader
        if leader is not None and leader.address != search.left:
            self._turn_to(leader, now)
        elif now > search.heard + SILENCE_S:
            # If there is no other one, the same server: the question may have been lost with an earlier process there.
            self._turn_to(search.following(), now)
        return None

    def _on_leader(self, answer: Status, now: float) -> None:
        """Know the servers that may lead the run next: a status does not name their keys."""
        search, here = self.search, self.search.server
        others = dict.fromkeys([self.address, *(one.address for one in answer.standbys)])
        others.pop(here.address, None)
        search.given = (here, *(one for other in others for one in keyed(self.credential, other)))
        search.named, search.left = (), ""
        search.on_message(now)

    def _turn_to(self, server: StandbyAddress, now: float) -> None:
        with suppress(AddressError):  # anything may have been named
            client = StatusClient(self.dial(server.address, server.public))
            self.client.close()
            self.client = client
            self.search.turn_to(server, now)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()
