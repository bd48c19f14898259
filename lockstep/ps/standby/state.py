"""A standby decides what to mirror, and when it leads the run itself. Pure: no socket, clock, file or digest.

It leads the run once more than half of the workers that computed the last step say that they miss the server, or once a
person says so, or the server itself, which may have lost its folder and be a standby now. Replication lags, and that
loses nothing: from the weights of a checkpoint, the workers compute the same bits again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from lockstep.common.errors import Diagnosis, FailureKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import (
    NO_TERM,
    Eviction,
    Join,
    Leave,
    Message,
    NotLeading,
    Ping,
    Refused,
    StandbyAddress,
    Status,
    StatusRequest,
    Term,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.protocol.standby_messages import (
    CommandOutcome,
    Drain,
    FilePart,
    FilePartRequest,
    LeaderNotice,
    LeaderRequest,
    MirrorRequest,
    Promote,
    RunFiles,
)
from lockstep.common.runtime.notice import warning
from lockstep.common.statemachine.client import Exit, ProtocolBroken, Redial, SendToServer
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.statemachine.machine import (
    IGNORED,
    Interrupted,
    Machine,
    PeerLeft,
    Received,
    Report,
    Send,
    Started,
    TimePassed,
    leads,
    soonest,
    stays,
    table_of,
)
from lockstep.ps.standby.mirror import Mirror

#: Seconds between two questions what there is to mirror, and until one that has no answer is asked again.
POLL_S, RETRY_S = 0.5, 2.0

#: Seconds after which what a process said counts no more, unless it says so again: it asks every five seconds at least.
CLAIM_S = 15.0

#: The answer to a worker that takes this standby for the server that led the run at its address before.
FOLLOWS = "the server that was here has been started again, and is a standby now"

#: How many times as long a server may be silent of which no worker is known: it may just begin, on a slow machine.
BEGINNING = 3

#: Seconds between two lines about how far the mirror is.
REPORT_S = 10.0


class StandbyPhase(Enum):
    """The phases of a standby."""

    #: It mirrors the folder of a run that another server leads.
    MIRRORING = "mirroring"
    #: It leads the run from now on.
    TAKING_OVER = "taking over"
    #: The run is over, or this process was interrupted.
    ENDED = "ended"


# Events


class PartReceived(Struct, frozen=True, kw_only=True):
    """A part of a file came, with its bytes."""

    part: FilePart
    data: bytes


StandbyEvent = (
    Started
    | RunFiles
    | PartReceived
    | NotLeading
    | LeaderNotice
    | Refused
    | ProtocolBroken
    | Diagnosis
    | Received
    | PeerLeft
    | TimePassed
    | Interrupted
)

# Effects


class TakeOver(Struct, frozen=True, kw_only=True):
    """Lead the run, in the term of this number."""

    number: int
    reason: str


StandbyEffect = SendToServer | Send | Redial | Report | TakeOver | Exit

_MIRRORING, _TAKING_OVER, _ENDED = StandbyPhase

#: Rows of events that can no longer change anything.
_LATE = leads(IGNORED, _TAKING_OVER, _ENDED)

#: The phases that may follow.
TRANSITIONS = table_of(
    StandbyPhase,
    {
        Started: _LATE | stays(_MIRRORING),
        RunFiles: _LATE | {_MIRRORING: {*StandbyPhase}},
        PartReceived: _LATE | {_MIRRORING: {*StandbyPhase}},
        NotLeading: _LATE | stays(_MIRRORING),
        # The answer of a server that was told of a later term: it is left already.
        LeaderNotice: leads(IGNORED, *StandbyPhase),
        Refused: _LATE | {_MIRRORING: {_MIRRORING, _ENDED}},
        ProtocolBroken: _LATE | {_MIRRORING: {_ENDED}},
        Diagnosis: _LATE | {_MIRRORING: {_MIRRORING, _ENDED}},
        Join: _LATE | {_MIRRORING: {_MIRRORING, _TAKING_OVER}, _TAKING_OVER: {_TAKING_OVER}},
        ShardJoin: _LATE | stays(_MIRRORING, _TAKING_OVER),
        MirrorRequest: _LATE | {_MIRRORING: {_MIRRORING, _TAKING_OVER}, _TAKING_OVER: {_TAKING_OVER}},
        LeaderRequest: _LATE | stays(_MIRRORING, _TAKING_OVER),
        Promote: _LATE | {_MIRRORING: {_MIRRORING, _TAKING_OVER}},
        Drain: _LATE | stays(_MIRRORING),
        StatusRequest: _LATE | stays(_MIRRORING),
        Ping: _LATE | stays(_MIRRORING),
        Leave: _LATE | stays(_MIRRORING),
        PeerLeft: _LATE | stays(_MIRRORING),
        TimePassed: _LATE | stays(_MIRRORING),
        Interrupted: leads({_ENDED}, _MIRRORING, _TAKING_OVER) | leads(IGNORED, _ENDED),
    },
)


@dataclass
class Claims:
    """The workers that say that they miss the server."""

    #: By connection, the request to join that says so, and when it came.
    by_peer: dict[bytes, tuple[Join, float]] = field(default_factory=dict)

    def add(self, peer: bytes, join: Join, now: float) -> bool:
        """Record that a worker says so; return whether it is the first time."""
        is_new = peer not in self.by_peer
        self.by_peer[peer] = join, now
        return is_new

    def voters(self, offer: RunFiles | None, now: float) -> int:
        """Return how many of the last step's workers say so.

        A worker that has been in a later term than the mirror is one of another set, and is counted as one of them.
        """
        claims = [join for join, at in self.by_peer.values() if now < at + CLAIM_S]
        term, electors = (NO_TERM, set[int]()) if offer is None else (offer.term, set(offer.electors))
        known = {join.last_rank for join in claims if join.term == term}
        later = {(join.term.number, join.term.server, join.last_rank) for join in claims if join.term.is_above(term)}
        return len(known & electors) + len(later)

    def text(self, offer: RunFiles | None, now: float) -> str:
        """Return how many say so, for a person."""
        of = 0 if offer is None else len(offer.electors)
        return f"{self.voters(offer, now)} of the {of} of the last step say so"

    def highest(self) -> int:
        """Return the number of the highest term that one of them has seen, 0 without any."""
        return max((join.term.number for join, _ in self.by_peer.values()), default=0)


@dataclass
class MirrorReports:
    """The lines about how far the mirror is, one now and then; and those of faults, each once."""

    #: When there was one last, and of which step.
    at: float = -REPORT_S
    step: int = -1
    #: The other lines.
    reported: set[str] = field(default_factory=set)

    def once(self, text: str) -> list[StandbyEffect]:
        """Return the report of a text, unless it was reported before."""
        if text in self.reported:
            return []
        self.reported.add(text)
        return [Report(text=text)]

    def warn_once(self, fault: str) -> list[StandbyEffect]:
        """Return the warning of a fault, unless it was reported before, or the text is empty."""
        return self.once(warning(fault)) if fault else []

    def on_whole(self, step: int, offer: RunFiles, now: float) -> list[Report]:
        """Return the report that the mirror has all that there is, if one is due."""
        if step == self.step or now < self.at + REPORT_S:
            return []
        self.at, self.step = now, step
        has = f"has the checkpoint of step {step}" if step else "has all that there is, and no checkpoint yet"
        return [Report(text=f"{has}; the run is at step {offer.step} of {offer.steps}")]


def status_of(offer: RunFiles | None, step: int, server: str, leader: StandbyAddress | None) -> Status:
    """Return the status of a standby of a server, whose mirror has that step; `leader` as of `NotLeading`."""
    run, steps, term = ("", 0, NO_TERM) if offer is None else (offer.run, offer.steps, offer.term)
    phase = f"standby of {server}"
    return Status(run=run, phase=phase, step=step, steps=steps, term=term.number, is_standby=True, leader=leader)


@dataclass
class StandbyState(Machine[StandbyEvent, StandbyEffect]):
    """The state of a standby."""

    transitions = TRANSITIONS
    #: Finds the leader; the server that is asked is the leader as far as is known.
    search: LeaderSearch
    #: Its request for files to mirror; the term and the step follow from the mirror.
    request: MirrorRequest
    mirror: Mirror
    phase: StandbyPhase = StandbyPhase.MIRRORING
    #: The last offer of a server that leads the run; None before the first.
    offer: RunFiles | None = None
    #: When a server that leads the run last sent anything, how often one was asked since, and when it is asked next.
    heard: float = 0.0
    unanswered: int = 0
    due: float = 0.0
    #: Whether its silence was reported.
    is_missed: bool = False
    claims: Claims = field(default_factory=Claims)
    reports: MirrorReports = field(default_factory=MirrorReports)

    def __post_init__(self) -> None:
        self.offer = self.mirror.held
        if self.offer is not None:
            self.search.named = self.offer.standbys
            # As what it has mirrored may be led from here, it asks around and does not wait for a diagnosis.
            self.search.ask_with_each_key()

    @property
    def takeover_s(self) -> float:
        """Seconds of the server's silence after which its workers come here."""
        return (RunOptions() if self.offer is None else self.offer.options).takeover_seconds

    @property
    def term(self) -> Term:
        """The highest term that it has seen."""
        return NO_TERM if self.offer is None else self.offer.term

    def handle(self, event: StandbyEvent, now: float) -> list[StandbyEffect]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        if self.phase is not StandbyPhase.MIRRORING:
            return None
        return soonest(self.due, self.search.leaves_at(self.takeover_s, is_led=True))

    def react(self, event: StandbyEvent, now: float) -> list[StandbyEffect]:
        match event:
            case Started():
                self.heard = self.search.arrived = now
                self.search.on_message(now)
                return self._poll(now)
            case RunFiles():
                return self._on_files(event, now)
            case PartReceived():
                return self._on_part(event, now)
            case NotLeading():
                # It is a standby too.
                self.due = now + POLL_S
                return self._go_to(self.search.on_not_leading(event) or self.search.following(), now)
            case LeaderNotice():
                return []
            case Refused(reason=reason):
                text = f"the server refused this standby: {one_line(reason)}"
                return self._end(2, text, FailureKind.REFUSED)
            case ProtocolBroken(fault=fault):
                return self._end(1, f"the server broke the protocol: {fault}", FailureKind.PROTOCOL)
            case Diagnosis():
                return self._on_obstacle(event, now)
            case Received(peer=peer, message=message):
                return self._on_message(peer, message, now)
            case PeerLeft(peer=peer):
                self.claims.by_peer.pop(peer, None)
                return []
            case TimePassed():
                return self._on_time_passed(now)
            case Interrupted():
                return self._end(130, "interrupted", FailureKind.INTERRUPTED)
            case _:
                assert_never(event)

    def _end(self, code: int, reason: str, kind: FailureKind | None) -> list[StandbyEffect]:
        self.phase = StandbyPhase.ENDED
        return [SendToServer(message=Leave(reason=reason)), Exit(code=code, reason=reason, kind=kind)]

    def _on_obstacle(self, found: Diagnosis, now: float) -> list[StandbyEffect]:
        """Report, or end at, what prevents a connection to a server that was never heard."""
        other = self.search.with_other_key() if found.has_other_key else None
        if other is not None:
            return [*self._go_to(other, now), *self._poll(now)]
        if found.is_final:
            return self._end(2, found.text, FailureKind.UNREACHABLE)
        return self.reports.once(f"waiting for a server at {self.search.server.address}: {found.text}")

    # The mirror

    def _poll(self, now: float) -> list[StandbyEffect]:
        """Ask what there is to mirror."""
        self.search.on_asked(now)
        self.unanswered += 1
        self.due, mirror = now + RETRY_S, self.mirror
        return [SendToServer(message=replace(self.request, term=self.term, step=mirror.step, is_whole=mirror.is_whole))]

    def _on_files(self, offer: RunFiles, now: float) -> list[StandbyEffect]:
        if self.term.is_above(offer.term):
            return self._turn_from(offer, now)
        obstacle, effects = self.mirror.obstacle(offer), list[StandbyEffect]()
        if obstacle and offer.term.run != self.term.run:
            self.due = now + POLL_S
            return self.reports.warn_once(f"{self.search.server.address} is not mirrored: {obstacle}")
        if self.offer is None or offer.term != self.offer.term:
            effects.append(
                Report(text=f"mirrors run {offer.run} of {self.search.server.address}, in term {offer.term.number}")
            )
            self.claims.by_peer.clear()
        elif self.is_missed:
            effects.append(Report(text=f"{self.search.server.address} is there again"))
        if self.offer is not None and offer.step > self.offer.step:
            # A server that makes steps is not gone, however long some workers have missed it.
            self.claims.by_peer.clear()
        self.is_missed, self.offer, self.search.named, self.search.left = False, offer, offer.standbys, ""
        self._on_leader(now)
        if obstacle:
            warned = self.reports.warn_once(f"{self.search.server.address}: {obstacle}")
            return [*effects, *warned, *self._on_progress(now)]
        if self.mirror.coming is not None and self.mirror.coming.files == offer.files:
            return effects  # a part of it could not be read: it is asked for again when that is due
        return [*effects, *self._mirrored(lambda: self.mirror.begin(offer), now)]

    def _on_leader(self, now: float) -> None:
        """Record that the server that leads the run has sent something."""
        self.heard, self.unanswered = now, 0
        self.search.on_leader(now)

    def _mirrored(self, change: Callable[[], str | None], now: float) -> list[StandbyEffect]:
        """Let the mirror change; a full disk costs the run nothing."""
        try:
            fault = change()
        except OSError as error:
            self.mirror.give_up()
            self.due = now + RETRY_S
            text = f"cannot write to {str(self.mirror.folder)!r}: {error.strerror}"
            return self.reports.warn_once(f"{text}: the run does not need it, and the mirror is tried again")
        return [*self.reports.warn_once(fault or ""), *self._on_progress(now)]

    def _turn_from(self, offer: RunFiles, now: float) -> list[StandbyEffect]:
        """Leave a server that led the run once, and tell it so: it may have slept, or been cut off."""
        text = (
            f"{self.search.server.address} leads in term {offer.term.number}, and term {self.term.number} has begun: "
            "it is not mirrored"
        )
        notice = LeaderNotice(term=self.term, address="")
        self.due = now + POLL_S
        return [*self.reports.warn_once(text), SendToServer(message=notice), *self._go_to(self.search.following(), now)]

    def _go_to(self, server: StandbyAddress, now: float) -> list[StandbyEffect]:
        """Ask another server from now on."""
        self.mirror.give_up()
        self.search.turn_to(server, now)
        return [Redial(server=server)]

    def _on_part(self, event: PartReceived, now: float) -> list[StandbyEffect]:
        if not self.mirror.expects(event.part):
            return []  # it was asked for twice
        self._on_leader(now)
        return self._mirrored(lambda: self.mirror.add(event.part, event.data), now)

    def _on_progress(self, now: float) -> list[StandbyEffect]:
        """Ask for the next part, or act on an offer of which all is here."""
        request, offer = self.mirror.request(), self.offer
        if request is not None:
            return self._ask(request, now)
        self.due = now + POLL_S
        if offer is None:
            return []
        is_whole = self.mirror.is_whole
        effects: list[StandbyEffect] = [*self.reports.on_whole(self.mirror.step, offer, now)] if is_whole else []
        if offer.state == "over":
            effects += self._end(0, "", None)
        elif offer.state == "handed over" and is_whole:
            effects += self._on_handed_over(offer, now)
        return effects

    def _ask(self, request: FilePartRequest, now: float) -> list[StandbyEffect]:
        self.search.on_asked(now)
        self.due = now + RETRY_S
        return [SendToServer(message=request)]

    def _on_handed_over(self, offer: RunFiles, now: float) -> list[StandbyEffect]:
        if offer.successor == self.request.address:
            done = SendToServer(message=Leave(reason="it has all of the run, and leads it from now on"))
            return [done, *self._take_over(f"{self.search.server.address} has handed the run over")]
        successor = next((one for one in offer.standbys if one.address == offer.successor), None)
        if successor is None or successor == self.search.server:
            return []
        return self._go_to(successor, now)

    # Others ask

    def _on_message(self, peer: bytes, message: Message, now: float) -> list[StandbyEffect]:
        match message:
            case Join():
                return self._on_join(peer, message, now)
            case MirrorRequest() if self._misses_all(now) and self.mirror.was_led_by(message, self.term):
                # It has lost its folder, and perhaps its workers: nothing else says that it does not lead any more.
                effects = self._take_over(f"{message.address} led it last, and is a standby now")
                return [*effects, Send(peer=peer, message=self._not_leading(now))]
            case ShardJoin() | MirrorRequest():
                return [Send(peer=peer, message=self._not_leading(now))]
            case LeaderRequest():
                notice = LeaderNotice(term=self.term, address=self.search.server.address, step=self.mirror.step)
                return [Send(peer=peer, message=notice)]
            case Promote():
                return self._on_promote(peer)
            case Drain():
                text = f"this is a standby: drain the server, at {self.search.server.address}"
                outcome = CommandOutcome(is_accepted=False, text=text, leader=self._not_leading(now).leader)
                return [Send(peer=peer, message=outcome)]
            case StatusRequest():
                leader = self._not_leading(now).leader
                status = status_of(self.offer, self.mirror.step, self.search.server.address, leader)
                return [Send(peer=peer, message=status)]
            case Ping():
                # It was in the run here, and waits: an answer would let it wait for ever.
                return [Send(peer=peer, message=Eviction(reason=FOLLOWS))]
            case _:
                return []

    def _on_join(self, peer: bytes, join: Join, now: float) -> list[StandbyEffect]:
        """Count a worker that misses the server; take over once they are enough."""
        report: list[StandbyEffect] = []
        if self.phase is StandbyPhase.MIRRORING and join.last_rank is not None and join.term.run == self.term.run:
            is_new = self.claims.add(peer, join, now)
            if decided := self._decision(now):
                effects = self._take_over(decided)
                return [*effects, *(Send(peer=one, message=self._not_leading(now)) for one in self.claims.by_peer)]
            misses = f"worker {join.last_rank} (host {join.host}, pid {join.pid}) misses the server"
            report = [Report(text=f"{misses}: {self.claims.text(self.offer, now)}")] if is_new else []
        return [*report, Send(peer=peer, message=self._not_leading(now))]

    def _decision(self, now: float) -> str:
        """Return why to take over, empty if there is no reason yet."""
        if self.offer is None or self.mirror.held is None:
            return ""
        is_decided = bool(self.offer.electors) and 2 * self.claims.voters(self.offer, now) > len(self.offer.electors)
        if not self.offer.electors and self.claims.by_peer and self._misses_all(now):
            return f"{self.search.server.address} is gone, and no worker had computed anything"
        return f"{self.search.server.address} is gone: {self.claims.text(self.offer, now)}" if is_decided else ""

    def _misses_all(self, now: float) -> bool:
        """Tell whether no server that leads the run has said anything for long."""
        # Asked twice at least: a standby that was stopped for a while has not been listening.
        is_missed = self.unanswered >= 2 and now >= self.heard + BEGINNING * self.takeover_s
        return is_missed and self.phase is StandbyPhase.MIRRORING

    def _not_leading(self, now: float) -> NotLeading:
        if self.phase is StandbyPhase.TAKING_OVER:
            return NotLeading(state="taking over", reason="it takes over")
        if self.offer is None or self.mirror.held is None:
            return NotLeading(state="following", reason="it has not mirrored the run yet")
        if now < self.heard + self.takeover_s:
            leader = self.search.server
            reason = f"it is a standby, and hears {leader.address}"
            return NotLeading(state="following", reason=reason, leader=leader)
        misses = f"it misses {self.search.server.address} too: {self.claims.text(self.offer, now)}"
        return NotLeading(state="silent", reason=misses)

    def _on_promote(self, peer: bytes) -> list[StandbyEffect]:
        if self.mirror.held is None:
            outcome = CommandOutcome(is_accepted=False, text="it has not mirrored the run yet: try again")
            return [Send(peer=peer, message=outcome)]
        outcome = CommandOutcome(is_accepted=True, text=f"it leads the run from now on, from step {self.mirror.step}")
        return [Send(peer=peer, message=outcome), *self._take_over("it was told to lead")]

    def _take_over(self, reason: str) -> list[StandbyEffect]:
        self.phase = StandbyPhase.TAKING_OVER
        # Its offer may be of another run, of which not all is here.
        seen = max(self.mirror.term.number, self.term.number, self.claims.highest())
        text = f"takes over, from step {self.mirror.step}: {reason}"
        return [Report(text=text), TakeOver(number=seen + 1, reason=reason)]

    # Time passes

    def _on_time_passed(self, now: float) -> list[StandbyEffect]:
        effects: list[StandbyEffect] = []
        if now >= self.heard + self.takeover_s and not self.is_missed:
            self.is_missed = True
            effects.append(Report(text=f"{self.search.server.address} has been silent for {now - self.heard:.0f} s"))
        leaves_at = self.search.leaves_at(self.takeover_s, is_led=True)
        if leaves_at is not None and now >= leaves_at:
            return [*effects, *self._go_to(self.search.following(), now), *self._poll(now)]
        if now < self.due:
            return effects
        request = self.mirror.request()
        return [*effects, *(self._poll(now) if request is None else self._ask(request, now))]

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        self.mirror.validate()
        assert self.phase is not StandbyPhase.TAKING_OVER or self.mirror.held is not None, "it has nothing to lead"
