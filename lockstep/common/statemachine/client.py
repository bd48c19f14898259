"""A client of a server: it joins the run, waits, rejoins, leaves and ends. Pure; knows nothing of the work in the run.

Messages of the server are events: the client talks to one server at a time. If that is gone, the client asks the
standbys that the server named, one after the other, until one leads the run. The answer to a welcome is an event, too.
"""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

import msgspec
from msgspec import Struct

from lockstep.common.errors import Diagnosis, FailureKind, RefusalKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import (
    NO_TERM,
    Eviction,
    Finished,
    HandedOver,
    Join,
    Leave,
    Message,
    NotLeading,
    Ping,
    Ready,
    Refused,
    StandbyAddress,
    StandbysChanged,
    Welcome,
    shortened,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardJoin, ShardReady, ShardWelcome
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.statemachine.machine import (
    IGNORED,
    Interrupted,
    Machine,
    Report,
    Started,
    TimePassed,
    soonest,
    table_of,
)

#: Seconds at most until a server that does not answer is asked again.
MOST_RETRY_S = 5.0

#: The same at most for a server that was never there: joins that find none are queued, and all arrive at once.
MOST_JOIN_RETRY_S = 60.0

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
    | StandbysChanged
    | HandedOver
    | NotLeading
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


class Redial(Struct, frozen=True, kw_only=True):
    """Leave the server's address, and dial this one instead."""

    server: StandbyAddress


class Exit(Struct, frozen=True, kw_only=True):
    """End the process with this code; `reason` is empty and `kind` None if all went well."""

    code: int
    reason: str
    kind: FailureKind | None = None


#: A welcome is an effect as well: get what it demands, answered by the message that says so, or by `PreparationFailed`.
ClientEffect = SendToServer | Redial | Welcome | ShardWelcome | Report | Exit

_JOINING, _PREPARING, _JOINED, _ENDED = ClientPhase

#: A worker has a place among the workers, a shard one among the servers. A welcome of an old term is none.
_WELCOMED = {_JOINING: {_PREPARING, _JOINING}, _JOINED: IGNORED, _ENDED: IGNORED}
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
        StandbysChanged: {_JOINING: IGNORED, _JOINED: {_JOINED}, _ENDED: IGNORED},
        HandedOver: {_JOINING: {_JOINING}, _JOINED: {_JOINING}, _ENDED: IGNORED},
        # Late, if the standby leads the run by now.
        NotLeading: {_JOINING: {_JOINING}, _JOINED: IGNORED, _ENDED: IGNORED},
        Finished: {_JOINING: {_ENDED}, _JOINED: {_ENDED}, _ENDED: IGNORED},
        ProtocolBroken: {_JOINING: {_ENDED}, _JOINED: {_ENDED}, _ENDED: IGNORED},
        Diagnosis: {_JOINING: {_JOINING, _ENDED}, _ENDED: IGNORED},
        TimePassed: {_JOINING: {_JOINING, _ENDED}, _JOINED: {_JOINING, _JOINED, _ENDED}, _ENDED: IGNORED},
        Interrupted: {_JOINING: {_ENDED}, _PREPARING: {_ENDED}, _JOINED: {_ENDED}, _ENDED: IGNORED},
    },
)


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses at which a process looks for the server, and the times for which it waits."""

    address: str
    join: Join | ShardJoin
    #: The other addresses that were given by a person, and the first one with other keys: as of `LeaderSearch`.
    others: tuple[StandbyAddress, ...] = ()
    keyed: tuple[StandbyAddress, ...] = ()
    #: Seconds to wait for a server that is not there, None for ever.
    timeout_s: float | None = None
    #: Seconds after which a server that was there and is silent counts as gone.
    silence_s: float


@dataclass
class Client(Machine[ClientEvent, ClientEffect]):
    """The state of a process that joins the run of a server."""

    transitions = TRANSITIONS
    config: ClientConfig
    #: The name of this process in texts.
    role: str
    phase: ClientPhase = ClientPhase.JOINING
    search: LeaderSearch = field(init=False)
    #: When it began to wait for a server.
    started: float = 0.0
    #: Seconds of the server's silence after which it is reported next.
    report_s: float = FIRST_REPORT_S
    #: How often this process has joined again, or tried to.
    rejoins: int = 0
    #: Whether it was ever welcome.
    has_joined: bool = False
    #: The run that it is in, or was evicted from and asks for again.
    run: str = ""
    #: The obstacle to a connection that was found last.
    obstacle: str = ""
    #: The options of the run, and the rank in the last term that it was in.
    options: RunOptions = field(default_factory=RunOptions)
    last_rank: int | None = None

    def __post_init__(self) -> None:
        given = (StandbyAddress(address=self.config.address), *self.config.others)
        self.search = LeaderSearch(given, keyed=self.config.keyed)

    def handle(self, event: ClientEvent, now: float) -> list[ClientEffect]:
        if self.transitions[self.phase, type(event)] and not isinstance(event, TimePassed | Diagnosis):
            self.on_message(now)
        return self.obey(event, now)

    def on_message(self, now: float) -> None:
        """Record that the server sent something, or that this process was busy until now."""
        self.search.on_message(now)
        self.report_s = FIRST_REPORT_S

    def deadline(self) -> float | None:
        if self.phase is ClientPhase.JOINING:
            timeout = self._join_timeout_s()
            retry = self._next_retry(MOST_JOIN_RETRY_S if timeout == math.inf else MOST_RETRY_S)
            return soonest(retry, self.started + timeout, self._leaves_at())
        return soonest(self._next_retry(MOST_RETRY_S), self._leaves_at()) if self.phase is ClientPhase.JOINED else None

    def _leaves_at(self) -> float | None:
        return self.search.leaves_at(self.options.takeover_seconds, is_led=self.phase is ClientPhase.JOINED)

    def _next_retry(self, most_s: float) -> float:
        return self.search.retry_at(self.options.takeover_seconds, most_s, self.config.join.incarnation)

    def _join_timeout_s(self) -> float:
        """Return the seconds to wait for a server that is not there, infinite if it waits for ever."""
        patience_s = self.config.silence_s if self.has_joined else math.inf
        return patience_s if self.config.timeout_s is None else self.config.timeout_s

    def join(self) -> Join | ShardJoin:
        """Return the request for a place: after each eviction this process is a new incarnation."""
        join = self.config.join
        if not self.rejoins:
            return join
        incarnation = f"{join.incarnation}.{self.rejoins}"
        if isinstance(join, ShardJoin):
            return msgspec.structs.replace(join, incarnation=incarnation, term=self.search.term)
        rank = self.last_rank if self.run else None
        return msgspec.structs.replace(
            join, incarnation=incarnation, run=self.run, term=self.search.term, last_rank=rank
        )

    def react(self, event: ClientEvent, now: float) -> list[ClientEffect]:
        match event:
            case Started():
                self.started = self.search.arrived = now
                return [SendToServer(message=self.join())]
            case Welcome() | ShardWelcome():
                return self._on_welcome(event, now)
            case StandbysChanged(standbys=standbys):
                self.search.named = standbys
                return []
            case HandedOver(standby=standby):
                self.search.named = (*self.search.named, standby)
                return self._leave_for(standby, f"{self.search.server.address} has handed the run over", now)
            case NotLeading():
                return self._on_not_leading(event, now)
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
            case Diagnosis():
                return self._on_obstacle(event, now)
            case TimePassed():
                return self._on_time_passed(now)
            case _:
                assert_never(event)

    def _on_obstacle(self, found: Diagnosis, now: float) -> list[ClientEffect]:
        """Remember what prevents a connection; end at it, unless a standby's key may be the right one there."""
        other = self.search.with_other_key() if found.has_other_key else None
        effects = [] if other is None else self._leave_for(other, f"{other.address} has another key", now)
        self.obstacle = found.text
        # An obstacle at one of several servers says nothing of those that may lead the run later.
        has_others = self.search.has_choice() and (self.has_joined or self.search.server.address != self.config.address)
        if found.is_final and other is None and not has_others:
            return self._end(2, found.text, FailureKind.UNREACHABLE)
        return effects

    def leave(self, code: int, reason: str, kind: FailureKind) -> list[ClientEffect]:
        """End, and tell the server why."""
        return [SendToServer(message=Leave(reason=shortened(reason))), *self._end(code, reason, kind)]

    def _end(self, code: int, reason: str, kind: FailureKind | None) -> list[ClientEffect]:
        self.phase = ClientPhase.ENDED
        return [Exit(code=code, reason=reason, kind=kind)]

    def _on_welcome(self, welcome: Welcome | ShardWelcome, now: float) -> list[ClientEffect]:
        search, begun = self.search, welcome.term.number
        if search.term.is_above(welcome.term):
            text = f"{search.server.address} welcomes in term {begun}, and term {search.term.number} has begun"
            return self._leave_for(search.following(), text, now)
        self.phase, self.run, self.has_joined = ClientPhase.PREPARING, welcome.run, True
        search.term, search.named, search.left, self.options = welcome.term, welcome.standbys, "", welcome.options
        self.last_rank = welcome.rank if isinstance(welcome, Welcome) else None
        search.on_leader(now)
        return [Report(text=f"joined run {welcome.run} as {_place_of(welcome)}"), welcome]

    def _on_not_leading(self, answer: NotLeading, now: float) -> list[ClientEffect]:
        search = self.search
        is_news = search.answer is None or search.answer.reason != answer.reason
        text = f"{search.server.address}: {one_line(answer.reason)}"
        leader = search.on_not_leading(answer)
        if leader is not None:
            return self._leave_for(leader, text, now)
        return [Report(text=text)] if is_news else []

    def _on_time_passed(self, now: float) -> list[ClientEffect]:
        leaves_at, search = self._leaves_at(), self.search
        if leaves_at is not None and now >= leaves_at and not self._is_out_of_time(now):
            is_following = search.answer is not None and search.answer.state == "following"
            why = "does not lead" if is_following else f"has been silent for {now - search.heard:.0f} s"
            return self._leave_for(search.following(), f"{search.server.address} {why}", now)
        return self._join_again(now) if self.phase is ClientPhase.JOINING else self._probe(now)

    def _leave_for(self, server: StandbyAddress, why: str, now: float) -> list[ClientEffect]:
        """Ask another server for a place."""
        started = self.started if self.phase is ClientPhase.JOINING else now
        # An obstacle to a connection with the last server says nothing about this one.
        self.phase, self.started, self.obstacle = ClientPhase.JOINING, started, ""
        self.search.turn_to(server, now)
        self.report_s = FIRST_REPORT_S
        self.rejoins += 1
        text = f"asking {server.address}: {one_line(why)}"
        return [Report(text=text), Redial(server=server), SendToServer(message=self.join())]

    def _on_refusal(self, refused: Refused, now: float) -> list[ClientEffect]:
        if refused.kind is RefusalKind.OLD_TERM and self.search.has_choice():
            is_joining = self.phase is ClientPhase.JOINING
            return self._leave_for(self.search.following(), refused.reason, now) if is_joining else []
        if refused.kind is not RefusalKind.OTHER_RUN:
            return self._end(2, f"the server refused this {self.role}: {refused.reason}", FailureKind.REFUSED)
        if self.phase is not ClientPhase.JOINING or not self.run:
            # It answers a join before the last one: now this process does not ask for that run.
            return []
        self.run, self.search.term = "", NO_TERM
        return self._rejoin(refused.reason, now)

    def _rejoin(self, reason: str, now: float) -> list[ClientEffect]:
        """Ask for a place as a process that was never there."""
        self.phase, self.started = ClientPhase.JOINING, now
        self.search.arrived, self.search.answer = now, None
        self.rejoins += 1
        return [Report(text=f"rejoining: {one_line(reason)}"), SendToServer(message=self.join())]

    def _is_out_of_time(self, now: float) -> bool:
        """Tell whether it has waited for a place as long as it may."""
        return self.phase is ClientPhase.JOINING and now >= self.started + self._join_timeout_s()

    def _join_again(self, now: float) -> list[ClientEffect]:
        obstacle, self.obstacle = self.obstacle, ""
        if self._is_out_of_time(now):
            reason = f"no server answered at {self.search.server.address} within {self._join_timeout_s():g} s: "
            return self._end(1, reason + (obstacle or "is it running there?"), FailureKind.UNREACHABLE)
        self.search.on_asked(now)
        text = f"waiting for a server at {self.search.server.address} ({now - self.started:.0f} s)"
        # The first join may have been lost with a server that died.
        return [Report(text=text + (obstacle and f": {obstacle}")), SendToServer(message=self.join())]

    def _probe(self, now: float) -> list[ClientEffect]:
        """Ask a silent server whether it is still there; end if it has been silent for too long."""
        silent_s, limit_s = now - self.search.heard, self.config.silence_s
        text = f"the server at {self.search.server.address} has been silent for {silent_s:.0f} s"
        # Ask twice at least: a process that was stopped for an hour has not been listening.
        if silent_s >= limit_s and self.search.tries >= 2:
            return self._end(1, f"{text}: is it gone?", FailureKind.UNREACHABLE)
        self.search.on_asked(now)
        if silent_s < self.report_s:
            return [SendToServer(message=Ping())]
        self.report_s *= 2
        return [Report(text=f"{text}: trying for {limit_s:g} s"), SendToServer(message=Ping())]


def _place_of(welcome: Welcome | ShardWelcome) -> str:
    """Return the place in the run, for people."""
    if isinstance(welcome, Welcome):
        return f"worker {welcome.rank}"
    return f"shard {welcome.index} of {welcome.options.servers} servers"
