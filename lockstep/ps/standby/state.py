"""A standby decides what to mirror, and when it leads the run itself. Pure: no socket, clock, file or digest.

It leads the run once more than half of the workers that computed the last step say that they miss the server, or once a
person says so, or the server itself. Replication lags, and that loses nothing: from the weights of a checkpoint, the
workers compute the same bits again.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

import msgspec
from msgspec import Struct

from lockstep.common.errors import FailureKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
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
    LeaderNotice,
    LeaderRequest,
    MirrorRequest,
    Promote,
    RunFile,
    RunFiles,
)
from lockstep.common.runtime.notice import warning
from lockstep.common.statemachine.client import (
    Exit,
    ObstacleFound,
    ProtocolBroken,
    Redial,
    SendToServer,
    Started,
    in_turn,
)
from lockstep.common.statemachine.machine import (
    IGNORED,
    Interrupted,
    Machine,
    PeerLeft,
    Received,
    Report,
    Send,
    TimePassed,
    leads,
    soonest,
    stays,
    table_of,
)
from lockstep.ps.checkpoint.folder import step_of
from lockstep.ps.records.run_folder import CHECKPOINTS
from lockstep.ps.standby.mirror import AskFor, Mirror, MirrorEffect, StorePart

#: Seconds between two questions what there is to mirror, and until one that has no answer is asked again.
POLL_S, RETRY_S = 0.5, 2.0

#: Seconds after which what a process said counts no more, unless it says so again: it asks every five seconds at least.
CLAIM_S = 15.0

#: What a worker is told that takes this standby for the server that led the run at its address before.
FOLLOWS = "the server that was here has been started again, and is a standby now"

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
    """A part of a file came, whose bytes have the digest that it says, or not."""

    part: FilePart
    is_intact: bool


class PartStored(Struct, frozen=True, kw_only=True):
    """A part is on the disk."""

    part: FilePart


class StoringFailed(Struct, frozen=True, kw_only=True):
    """A part cannot be written."""

    reason: str


class FileCompleted(Struct, frozen=True, kw_only=True):
    """A file has its name, unless it is not what its version says: then `fault` says so."""

    file: RunFile
    fault: str = ""


StandbyEvent = (
    Started
    | RunFiles
    | PartReceived
    | PartStored
    | StoringFailed
    | FileCompleted
    | NotLeading
    | LeaderNotice
    | Refused
    | ProtocolBroken
    | ObstacleFound
    | Received
    | PeerLeft
    | TimePassed
    | Interrupted
)

# Effects


class TakeOver(Struct, frozen=True, kw_only=True):
    """Lead the run, in a term of at least this number."""

    least: int
    reason: str


StandbyEffect = MirrorEffect | SendToServer | Send | Redial | Report | TakeOver | Exit

_MIRRORING, _TAKING_OVER, _ENDED = StandbyPhase

#: What can no longer change anything.
_LATE = leads(IGNORED, _TAKING_OVER, _ENDED)

#: What may follow.
TRANSITIONS = table_of(
    StandbyPhase,
    {
        Started: _LATE | stays(_MIRRORING),
        RunFiles: _LATE | {_MIRRORING: {*StandbyPhase}},
        PartReceived: _LATE | stays(_MIRRORING),
        PartStored: _LATE | {_MIRRORING: {*StandbyPhase}},
        StoringFailed: _LATE | stays(_MIRRORING),
        FileCompleted: _LATE | {_MIRRORING: {*StandbyPhase}},
        NotLeading: _LATE | stays(_MIRRORING),
        LeaderNotice: _LATE | stays(_MIRRORING),
        Refused: _LATE | {_MIRRORING: {_MIRRORING, _ENDED}},
        ProtocolBroken: _LATE | {_MIRRORING: {_ENDED}},
        ObstacleFound: _LATE | {_MIRRORING: {_MIRRORING, _ENDED}},
        Join: _LATE | {_MIRRORING: {_MIRRORING, _TAKING_OVER}, _TAKING_OVER: {_TAKING_OVER}},
        ShardJoin: _LATE | stays(_MIRRORING, _TAKING_OVER),
        MirrorRequest: _LATE | stays(_MIRRORING, _TAKING_OVER),
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


class Claim(Struct, frozen=True, kw_only=True):
    """A worker says that it misses the server."""

    #: The highest term that it has seen, and its rank in the last one that it was in.
    term: Term
    rank: int
    at: float


class StandbyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where a standby is, and whom it mirrors."""

    server: StandbyAddress
    #: Where workers reach it.
    own: StandbyAddress
    host: str
    pid: int


@dataclass
class StandbyState(Machine[StandbyEvent, StandbyEffect]):
    """The state of a standby."""

    transitions = TRANSITIONS
    config: StandbyConfig
    phase: StandbyPhase = StandbyPhase.MIRRORING
    mirror: Mirror = field(default_factory=Mirror)
    #: The last offer of a server that leads the run; None before the first.
    offer: RunFiles | None = None
    #: Who is asked, which is the leader as far as is known.
    server: StandbyAddress = field(init=False)
    #: When that server was chosen, and when one that leads the run last sent anything.
    arrived: float = 0.0
    heard: float = 0.0
    #: When it was last asked, and when it is asked next.
    asked: float = 0.0
    due: float = 0.0
    #: Whether its silence was reported.
    is_missed: bool = False
    #: Who misses the server, by connection.
    claims: dict[bytes, Claim] = field(default_factory=dict)
    #: Faults that were reported: each is reported once.
    reported: set[str] = field(default_factory=set)
    #: When it was last reported how far the mirror is.
    _shown: float = -REPORT_S
    _shown_step: int = -1

    def __post_init__(self) -> None:
        self.server, self.offer = self.config.server, self.mirror.offer

    @property
    def takeover_s(self) -> float:
        """Seconds of the server's silence after which its workers come here."""
        options = RunOptions() if self.offer is None else self.offer.options
        return options.takeover_seconds

    @property
    def step(self) -> int:
        """The step of the last checkpoint that is here."""
        folder = f"{CHECKPOINTS}/"
        steps = (step_of(name.removeprefix(folder)) for name in self.mirror.files if name.startswith(folder))
        return max((step for step in steps if step is not None), default=0)

    def handle(self, event: StandbyEvent, now: float) -> list[StandbyEffect]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        if self.phase is not StandbyPhase.MIRRORING:
            return None
        return soonest(self.due, self._leaves_at())

    def _leaves_at(self) -> float | None:
        """Return when it asks another server, None if it knows no other."""
        if len(self._servers()) == 1:
            return None
        return max(max(self.heard, self.arrived) + self.takeover_s, self.asked + POLL_S)

    def _servers(self) -> list[StandbyAddress]:
        """Return who may lead the run, besides this process."""
        standbys = () if self.offer is None else self.offer.standbys
        found = in_turn([self.config.server], standbys, self.server)
        return [one for one in found if one.address != self.config.own.address]

    def react(self, event: StandbyEvent, now: float) -> list[StandbyEffect]:
        match event:
            case Started():
                self.heard = self.arrived = now
                return self._poll(now)
            case RunFiles():
                return self._on_files(event, now)
            case PartReceived():
                return self._on_part(event, now)
            case PartStored(part=part):
                return self._on_progress(self.mirror.on_stored(part), now)
            case StoringFailed(reason=reason):
                self.mirror.give_up()
                self.due = now + RETRY_S
                return self._report_once(f"{reason}: the run does not need it, and the mirror is tried again")
            case FileCompleted(file=file, fault=fault):
                done = self.mirror.on_completed(file, is_intact=not fault)
                return [*self._report_once(fault), *self._on_progress(done, now)]
            case NotLeading():
                # It is a standby too.
                self.due = now + POLL_S
                return self._go_to(self._following(), now)
            case LeaderNotice():
                return self._on_notice(event, now)
            case Refused(reason=reason):
                text = f"the server refused this standby: {one_line(reason)}"
                return self._end(2, text, FailureKind.REFUSED)
            case ProtocolBroken(fault=fault):
                return self._end(1, f"the server broke the protocol: {fault}", FailureKind.PROTOCOL)
            case ObstacleFound(obstacle=obstacle, is_final=is_final):
                return self._on_obstacle(obstacle, is_final=is_final)
            case Received(peer=peer, message=message):
                return self._on_message(peer, message, now)
            case PeerLeft(peer=peer):
                self.claims.pop(peer, None)
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

    def _on_obstacle(self, obstacle: str, *, is_final: bool) -> list[StandbyEffect]:
        """Report, or end at, what prevents a connection to a server that was never heard."""
        if is_final:
            return self._end(2, obstacle, FailureKind.UNREACHABLE)
        if obstacle in self.reported:
            return []
        self.reported.add(obstacle)
        return [Report(text=f"waiting for a server at {self.server.address}: {obstacle}")]

    def _report_once(self, text: str) -> list[StandbyEffect]:
        if not text or text in self.reported:
            return []
        self.reported.add(text)
        return [Report(text=warning(text))]

    # The mirror

    def _poll(self, now: float) -> list[StandbyEffect]:
        """Ask what there is to mirror."""
        self.asked, self.due = now, now + RETRY_S
        own = self.config.own
        request = MirrorRequest(
            protocol=PROTOCOL_VERSION,
            host=self.config.host,
            pid=self.config.pid,
            address=own.address,
            public=own.public,
            term=self.mirror.term,
            step=self.step,
            is_whole=self.mirror.is_whole,
        )
        return [SendToServer(message=request)]

    def _on_files(self, offer: RunFiles, now: float) -> list[StandbyEffect]:
        if self.mirror.term.is_above(offer.term):
            return self._turn_from(offer, now)
        effects: list[StandbyEffect] = []
        if self.offer is None or offer.term != self.offer.term:
            effects.append(
                Report(text=f"mirrors run {offer.run} of {self.server.address}, in term {offer.term.number}")
            )
            self.claims.clear()
        elif self.is_missed:
            effects.append(Report(text=f"{self.server.address} is there again"))
        self.heard, self.is_missed, self.offer = now, False, offer
        return [*effects, *self._on_progress(self.mirror.begin_round(offer), now)]

    def _turn_from(self, offer: RunFiles, now: float) -> list[StandbyEffect]:
        """Leave a server that led the run once, and tell it so: it may have slept, or been cut off."""
        text = (
            f"{self.server.address} leads in term {offer.term.number}, and term {self.mirror.term.number} has begun: "
            "it is not mirrored"
        )
        notice = LeaderNotice(term=self.mirror.term, address="")
        self.due = now + POLL_S
        return [*self._report_once(text), SendToServer(message=notice), *self._go_to(self._following(), now)]

    def _go_to(self, server: StandbyAddress, now: float) -> list[StandbyEffect]:
        """Ask another server from now on."""
        self.mirror.give_up()
        self.server, self.arrived = server, now
        return [Redial(server=server)]

    def _following(self) -> StandbyAddress:
        """Return the next of the servers that may lead the run, the same one if there is no other."""
        servers = self._servers()
        here = [one.address for one in servers].index(self.server.address)
        return servers[(here + 1) % len(servers)]

    def _on_part(self, event: PartReceived, now: float) -> list[StandbyEffect]:
        if not self.mirror.expects(event.part):
            return []  # it was asked for twice, or of another term
        self.heard = now
        if event.is_intact:
            return [StorePart(part=event.part)]
        part = event.part
        fault = f"a part of {part.name!r} did not come as it was sent (its SHA-256 differs): it is asked for again"
        return [*self._report_once(fault), *self._asked(self.mirror.ask_again(), now)]

    def _on_progress(self, done: list[MirrorEffect], now: float) -> list[StandbyEffect]:
        effects = self._asked(done, now)
        offer = self.offer
        if self.mirror.wanted or offer is None:
            return effects
        self.due = now + POLL_S
        if not self.mirror.is_whole:
            return effects
        effects += self._show(offer, now)
        if offer.state == "over":
            return [*effects, *self._end(0, "", None)]
        if offer.state == "handed over":
            return [*effects, *self._on_handed_over(offer, now)]
        return effects

    def _asked(self, effects: list[MirrorEffect], now: float) -> list[StandbyEffect]:
        if any(isinstance(effect, AskFor) for effect in effects):
            self.asked, self.due = now, now + RETRY_S
        return [*effects]

    def _show(self, offer: RunFiles, now: float) -> list[StandbyEffect]:
        """Report how far the mirror is, now and then."""
        if self.step == self._shown_step or now < self._shown + REPORT_S:
            return []
        self._shown, self._shown_step = now, self.step
        has = f"has the checkpoint of step {self.step}" if self.step else "has all that there is, and no checkpoint yet"
        return [Report(text=f"{has}; the run is at step {offer.step} of {offer.steps}")]

    def _on_handed_over(self, offer: RunFiles, now: float) -> list[StandbyEffect]:
        if offer.heir == self.config.own.address:
            done = SendToServer(message=Leave(reason="it has all of the run, and leads it from now on"))
            return [done, *self._take_over(f"{self.server.address} has handed the run over")]
        heir = next((one for one in offer.standbys if one.address == offer.heir), None)
        if heir is None or heir == self.server:
            return []
        return self._go_to(heir, now)

    def _on_notice(self, notice: LeaderNotice, now: float) -> list[StandbyEffect]:
        """Follow the server that leads the run, if that is another one."""
        leader = next((one for one in self._servers() if one.address == notice.address), None)
        if leader is None or leader == self.server or not notice.term.is_above(self.mirror.term):
            return []
        self.due = now
        return self._go_to(leader, now)

    # Others ask

    def _on_message(self, peer: bytes, message: Message, now: float) -> list[StandbyEffect]:
        match message:
            case Join():
                return self._on_join(peer, message, now)
            case ShardJoin() | MirrorRequest():
                return [Send(peer=peer, message=self._not_leading(now))]
            case LeaderRequest():
                return [Send(peer=peer, message=LeaderNotice(term=self.mirror.term, address=self.server.address))]
            case Promote():
                return self._on_promote(peer)
            case Drain():
                text = f"this is a standby: drain the server, at {self.server.address}"
                return [Send(peer=peer, message=CommandOutcome(is_accepted=False, text=text))]
            case StatusRequest():
                return [Send(peer=peer, message=self._status())]
            case Ping():
                # It was in the run here, and waits: an answer would let it wait for ever.
                return [Send(peer=peer, message=Eviction(reason=FOLLOWS))]
            case _:
                return []

    def _on_join(self, peer: bytes, join: Join, now: float) -> list[StandbyEffect]:
        """Count a worker that misses the server; take over once they are enough."""
        if (
            self.phase is StandbyPhase.MIRRORING
            and join.last_rank is not None
            and join.term.run == self.mirror.term.run
        ):
            is_new = peer not in self.claims
            self.claims[peer] = Claim(term=join.term, rank=join.last_rank, at=now)
            decided = self._decision(now)
            if decided:
                effects = self._take_over(decided)
                return [*effects, *(Send(peer=one, message=self._not_leading(now)) for one in self.claims)]
            text = f"worker {join.last_rank} (host {join.host}, pid {join.pid}) misses the server: {self._count(now)}"
            report = [Report(text=text)] if is_new else []
            return [*report, Send(peer=peer, message=self._not_leading(now))]
        return [Send(peer=peer, message=self._not_leading(now))]

    def _voters(self, now: float) -> int:
        """Return how many of the last step's workers say that they miss the server.

        A worker that has been in a later term than the mirror is one of another set, and is counted as one of them.
        """
        claims = [claim for claim in self.claims.values() if now < claim.at + CLAIM_S]
        electors = set() if self.offer is None else set(self.offer.electors)
        known = {claim.rank for claim in claims if claim.term == self.mirror.term}
        later = {(claim.term.number, claim.rank) for claim in claims if claim.term.is_above(self.mirror.term)}
        return len(known & electors) + len(later)

    def _count(self, now: float) -> str:
        of = 0 if self.offer is None else len(self.offer.electors)
        return f"{self._voters(now)} of the {of} of the last step say so"

    def _decision(self, now: float) -> str:
        """Return why to take over, empty if there is no reason yet."""
        if self.offer is None or not self.mirror.has_been_whole:
            return ""
        is_decided = bool(self.offer.electors) and 2 * self._voters(now) > len(self.offer.electors)
        if not self.offer.electors and self.claims and now >= self.heard + self.takeover_s:
            return f"{self.server.address} is gone, and nobody had computed anything"
        return f"{self.server.address} is gone: {self._count(now)}" if is_decided else ""

    def _not_leading(self, now: float) -> NotLeading:
        if self.phase is StandbyPhase.TAKING_OVER:
            return NotLeading(state="taking over", reason="it takes over")
        if self.offer is None or not self.mirror.has_been_whole:
            return NotLeading(state="following", reason="it has not mirrored the run yet")
        if now < self.heard + self.takeover_s:
            return NotLeading(state="following", reason=f"it is a standby, and hears {self.server.address}")
        return NotLeading(state="silent", reason=f"it misses {self.server.address} too: {self._count(now)}")

    def _on_promote(self, peer: bytes) -> list[StandbyEffect]:
        if not self.mirror.has_been_whole:
            outcome = CommandOutcome(is_accepted=False, text="it has not mirrored the run yet: try again")
            return [Send(peer=peer, message=outcome)]
        outcome = CommandOutcome(is_accepted=True, text=f"it leads the run from now on, from step {self.step}")
        return [Send(peer=peer, message=outcome), *self._take_over("it was promoted")]

    def _take_over(self, reason: str) -> list[StandbyEffect]:
        self.phase = StandbyPhase.TAKING_OVER
        seen = [self.mirror.term.number, *(claim.term.number for claim in self.claims.values())]
        text = f"takes over, from step {self.step}: {reason}"
        return [Report(text=text), TakeOver(least=max(seen) + 1, reason=reason)]

    def _status(self) -> Status:
        offer = self.offer
        return Status(
            run="" if offer is None else offer.run,
            model="",
            phase=f"standby of {self.server.address}",
            epoch=0,
            epochs=0,
            step=self.step,
            steps=0 if offer is None else offer.steps,
            loss=0.0,
            images_per_s=0.0,
            elapsed_s=0.0,
            eta_s=0.0,
            min_workers=0,
            workers=[],
            history=[],
            failure="",
            term=self.mirror.term.number,
            is_standby=True,
        )

    # Time passes

    def _on_time_passed(self, now: float) -> list[StandbyEffect]:
        effects: list[StandbyEffect] = []
        if now >= self.heard + self.takeover_s and not self.is_missed:
            self.is_missed = True
            effects.append(Report(text=f"{self.server.address} has been silent for {now - self.heard:.0f} s"))
        leaves_at = self._leaves_at()
        if leaves_at is not None and now >= leaves_at:
            return [*effects, *self._go_to(self._following(), now), *self._poll(now)]
        if now < self.due:
            return effects
        if self.mirror.wanted:
            return [*effects, *self._asked(self.mirror.ask_again(), now)]
        return [*effects, *self._poll(now)]

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        self.mirror.validate()
        assert self.phase is not StandbyPhase.TAKING_OVER or self.mirror.has_been_whole, "it has nothing to lead"
