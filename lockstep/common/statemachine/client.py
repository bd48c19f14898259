"""A client of a server: it joins the run, waits, rejoins, leaves and ends. Pure; knows nothing of the work in the run.

Messages of the server are events. A server that is silent is asked again and again: it may be restarted, and then does
not know the client, which joins it once more. The answer to a welcome is an event, too.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import msgspec
from msgspec import Struct

from lockstep.common.errors import Diagnosis, FailureKind, RefusalKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import (
    Eviction,
    Finished,
    Join,
    Leave,
    Message,
    Ping,
    Ready,
    Refused,
    Spare,
    Welcome,
    shortened,
)
from lockstep.common.protocol.shard_messages import ShardJoin, ShardReady, ShardWelcome
from lockstep.common.statemachine.machine import (
    IGNORED,
    Interrupted,
    Machine,
    Report,
    Started,
    TimePassed,
    backoff_s,
    soonest,
    table_of,
)

#: Seconds until a server that does not answer is asked again, at first and at most: one that was there may be back at
#: any moment, and finds a question of each client when it is.
FIRST_RETRY_S, MOST_RETRY_S = 1.0, 2.0

#: The same at most for a server that was never there: joins that find none are queued, and all arrive at once.
MOST_JOIN_RETRY_S = 60.0

#: Seconds after which a server that went silent counts as gone, by default: it may be restarted meanwhile.
SILENCE_S = 600.0

#: Seconds of a server's silence after which it is reported for the first time: then at twice the time, and so on.
FIRST_REPORT_S = 10.0


class ClientPhase(Enum):
    """The phases of a process that joins a run."""

    #: It asks the server for a place.
    JOINING = "joining"
    #: It has a place, and loads the model and the data, or makes room for its slice.
    PREPARING = "preparing"
    #: It takes part in the run.
    JOINED = "joined"
    #: It has left, was refused, or the run is over.
    ENDED = "ended"


# Events


class PreparationFailed(Struct, frozen=True, kw_only=True):
    """This process does not have what the welcome demands, or has something else than the server."""

    reason: str


class ProtocolBroken(Struct, frozen=True, kw_only=True):
    """The server sent what it must not."""

    fault: str


ClientEvent = (
    Started
    | Welcome
    | ShardWelcome
    | Refused
    | Eviction
    | Ready
    | ShardReady
    | PreparationFailed
    | Spare
    | Finished
    | ProtocolBroken
    | Diagnosis
    | TimePassed
    | Interrupted
)

# Effects


class SendToServer(Struct, frozen=True, kw_only=True):
    """Send the server a message that carries no array."""

    message: Message


class Exit(Struct, frozen=True, kw_only=True):
    """End the process with this code; `reason` is empty and `kind` None if all went well."""

    code: int
    reason: str
    kind: FailureKind | None = None


#: A welcome is an effect as well: get what it demands, answered by the message that says so, or by `PreparationFailed`.
ClientEffect = SendToServer | Welcome | ShardWelcome | Report | Exit

_JOINING, _PREPARING, _JOINED, _ENDED = ClientPhase

#: A worker has a place among the workers, a shard one among the servers.
_WELCOMED = {_JOINING: {_PREPARING}, _JOINED: IGNORED, _ENDED: IGNORED}
_PREPARED = {_PREPARING: {_JOINED}, _ENDED: IGNORED}

#: The legal transitions. While it prepares, the shell reads no messages: they wait in the socket.
TRANSITIONS = table_of(
    ClientPhase,
    {
        Started: {_JOINING: {_JOINING}},
        Welcome: _WELCOMED,
        ShardWelcome: _WELCOMED,
        Refused: {_JOINING: {_JOINING, _ENDED}, _JOINED: {_JOINED, _ENDED}, _ENDED: IGNORED},
        # While it joins, the server does not know it yet.
        Eviction: {_JOINING: IGNORED, _JOINED: {_JOINING}, _ENDED: IGNORED},
        Ready: _PREPARED,
        ShardReady: _PREPARED,
        PreparationFailed: {_PREPARING: {_ENDED}, _ENDED: IGNORED},
        # A shard waits for a slice. A worker that waits is in the run: its own machine handles that.
        Spare: {_JOINING: {_JOINING}, _JOINED: IGNORED, _ENDED: IGNORED},
        Finished: {_JOINING: {_ENDED}, _JOINED: {_ENDED}, _ENDED: IGNORED},
        ProtocolBroken: {_JOINING: {_ENDED}, _JOINED: {_ENDED}, _ENDED: IGNORED},
        Diagnosis: {_JOINING: {_JOINING, _ENDED}, _ENDED: IGNORED},
        TimePassed: {_JOINING: {_JOINING, _ENDED}, _JOINED: {_JOINING, _JOINED, _ENDED}, _ENDED: IGNORED},
        Interrupted: {_JOINING: {_ENDED}, _PREPARING: {_ENDED}, _JOINED: {_ENDED}, _ENDED: IGNORED},
    },
)


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The address of the server, and the times for which a process waits for it."""

    address: str
    join: Join | ShardJoin
    #: Seconds to wait for the server; None for ever at first, and `silence_s` if it was there.
    timeout_s: float | None = None
    silence_s: float = SILENCE_S

    @property
    def patience_s(self) -> float:
        """Seconds to wait for a server that was there and is silent."""
        return self.silence_s if self.timeout_s is None else self.timeout_s


@dataclass
class Client(Machine[ClientEvent, ClientEffect]):
    """The state of a process that joins the run of a server."""

    transitions = TRANSITIONS
    config: ClientConfig
    #: The name of this process in texts.
    role: str
    phase: ClientPhase = ClientPhase.JOINING
    #: When it began to wait for a place.
    started: float = 0.0
    #: When the server last sent anything, and when it was last asked; and how often since it sent anything.
    heard: float = 0.0
    asked: float = 0.0
    tries: int = 0
    #: Seconds of the server's silence after which it is reported next.
    report_s: float = FIRST_REPORT_S
    #: How often this process has joined again.
    rejoins: int = 0
    #: Whether it was ever welcome.
    has_joined: bool = False
    #: The run that it is in, or was evicted from and asks for again.
    run: str = ""
    #: The obstacle to a connection that was found last.
    obstacle: str = ""
    #: The event that a shard without a slice waits for, as the server has reported it.
    awaited: str = ""

    def handle(self, event: ClientEvent, now: float) -> list[ClientEffect]:
        if self.transitions[self.phase, type(event)] and not isinstance(event, TimePassed | Diagnosis):
            self.on_message(now)
        return self.obey(event, now)

    def on_message(self, now: float) -> None:
        """Record that the server sent something, or that this process was busy until now."""
        self.heard = self.asked = now
        self.tries, self.report_s = 0, FIRST_REPORT_S

    def on_asked(self, now: float) -> None:
        """Record that the server is asked."""
        self.asked = now
        self.tries += 1

    def deadline(self) -> float | None:
        if self.phase is ClientPhase.JOINING:
            timeout_s = self._join_timeout_s()
            retry = self._next_retry(MOST_JOIN_RETRY_S if timeout_s == math.inf else MOST_RETRY_S)
            return soonest(retry, self.started + timeout_s)
        return self._next_retry(MOST_RETRY_S) if self.phase is ClientPhase.JOINED else None

    def _next_retry(self, most_s: float) -> float:
        seed = self.config.join.incarnation
        return self.asked + backoff_s(self.tries + 1, first_s=FIRST_RETRY_S, most_s=most_s, seed=seed)

    def _join_timeout_s(self) -> float:
        """Return the seconds to wait for a server that is not there, infinite if it waits for ever."""
        return math.inf if self.config.timeout_s is None and not self.has_joined else self.config.patience_s

    def join(self) -> Join | ShardJoin:
        """Return the request for a place: after each eviction this process is a new incarnation."""
        join = self.config.join
        if not self.rejoins:
            return join
        incarnation = f"{join.incarnation}.{self.rejoins}"
        if isinstance(join, ShardJoin):
            return msgspec.structs.replace(join, incarnation=incarnation)
        return msgspec.structs.replace(join, incarnation=incarnation, run=self.run)

    def react(self, event: ClientEvent, now: float) -> list[ClientEffect]:
        match event:
            case Started():
                self.started = now
                return [SendToServer(message=self.join())]
            case Welcome() | ShardWelcome():
                self.phase, self.run = ClientPhase.PREPARING, event.run
                self.has_joined, self.awaited = True, ""
                return [Report(text=f"joined run {event.run} as {_place_of(event)}"), event]
            case Spare(reason=reason):
                is_news, self.awaited = reason != self.awaited, reason
                return [Report(text=one_line(reason))] if is_news else []
            case Refused():
                return self._on_refusal(event, now)
            case Eviction(reason=reason):
                return self._rejoin(reason, now)
            case Ready() | ShardReady():
                self.phase = ClientPhase.JOINED
                return [SendToServer(message=event)]
            case PreparationFailed(reason=reason):
                return self.leave(2, reason, FailureKind.PREPARATION)
            case Finished():
                reason = event.reason and f"the run failed: {event.reason}"
                return self._end(1 if reason else 0, reason, event.kind)
            case ProtocolBroken(fault=fault):
                return self.leave(1, f"the server broke the protocol: {fault}", FailureKind.PROTOCOL)
            case Interrupted():
                return self.leave(130, "interrupted", FailureKind.INTERRUPTED)
            case Diagnosis(text=text, is_final=is_final):
                self.obstacle = text
                return self._end(2, text, FailureKind.UNREACHABLE) if is_final else []
            case TimePassed():
                return self._join_again(now) if self.phase is ClientPhase.JOINING else self._probe(now)
            case _:
                assert_never(event)

    def leave(self, code: int, reason: str, kind: FailureKind) -> list[ClientEffect]:
        """End, and tell the server why."""
        return [SendToServer(message=Leave(reason=shortened(reason))), *self._end(code, reason, kind)]

    def _end(self, code: int, reason: str, kind: FailureKind | None) -> list[ClientEffect]:
        self.phase = ClientPhase.ENDED
        return [Exit(code=code, reason=reason, kind=kind)]

    def _on_refusal(self, refused: Refused, now: float) -> list[ClientEffect]:
        if refused.kind is not RefusalKind.OTHER_RUN:
            return self._end(2, f"the server refused this {self.role}: {refused.reason}", FailureKind.REFUSED)
        if self.phase is not ClientPhase.JOINING or not self.run:
            # It answers a join before the last one: now this process does not ask for that run.
            return []
        self.run = ""
        return self._rejoin(refused.reason, now)

    def _rejoin(self, reason: str, now: float) -> list[ClientEffect]:
        """Ask for a place as a process that was never there."""
        self.phase, self.started = ClientPhase.JOINING, now
        self.rejoins += 1
        return [Report(text=f"rejoining: {one_line(reason)}"), SendToServer(message=self.join())]

    def _join_again(self, now: float) -> list[ClientEffect]:
        obstacle, self.obstacle = self.obstacle, ""
        if now >= self.started + self._join_timeout_s():
            reason = f"no server answered at {self.config.address} within {self._join_timeout_s():g} s: "
            return self._end(1, reason + (obstacle or "is it running there?"), FailureKind.UNREACHABLE)
        self.on_asked(now)
        text = f"waiting for a server at {self.config.address} ({now - self.started:.0f} s)"
        # The first join may have been lost with a server that died.
        return [Report(text=text + (obstacle and f": {obstacle}")), SendToServer(message=self.join())]

    def _probe(self, now: float) -> list[ClientEffect]:
        """Ask a silent server whether it is still there; end if it has been silent for too long."""
        silent_s, limit_s = now - self.heard, self.config.patience_s
        text = f"the server at {self.config.address} has been silent for {silent_s:.0f} s"
        # Ask twice at least: a process that was stopped for an hour has not been listening.
        if silent_s >= limit_s and self.tries >= 2:
            return self._end(1, f"{text}: is it gone?", FailureKind.UNREACHABLE)
        self.on_asked(now)
        if silent_s < self.report_s:
            return [SendToServer(message=Ping())]
        self.report_s *= 2
        return [Report(text=f"{text}: trying for {limit_s:g} s"), SendToServer(message=Ping())]


def _place_of(welcome: Welcome | ShardWelcome) -> str:
    """Return the place in the run, for people."""
    if isinstance(welcome, Welcome):
        return f"worker {welcome.rank}"
    return f"shard {welcome.index} of {welcome.options.servers} servers"
