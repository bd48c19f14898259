"""What a server does for those that may lead its run after it: shows them the run's folder, knows where they are, finds
out whether one of them leads the run already, and hands the run over. A shell.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field

import msgspec

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import CONTINUED, FailureKind, LockstepError, RefusalKind, RemoteProtocolError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    STANDBYS_LIMIT,
    HandedOver,
    Leave,
    Message,
    Refused,
    StandbyAddress,
    StandbysChanged,
    Term,
)
from lockstep.common.protocol.standby_messages import (
    CommandOutcome,
    Drain,
    FilePartRequest,
    LeaderNotice,
    LeaderRequest,
    MirrorRequest,
    Promote,
    RunFiles,
    StandbyMessage,
    ToStandbyMessage,
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.notice import warning
from lockstep.common.statemachine.loop import deliver
from lockstep.common.statemachine.machine import soonest
from lockstep.common.transport.auth.keys import is_standbys
from lockstep.common.transport.port import ClientPort, Dial, PeerSlow, ServerPort
from lockstep.ps.coordinator import effects, events
from lockstep.ps.coordinator.admission import superseded_text
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.parts.hand_over import HandOver
from lockstep.ps.shard_group.group import SliceGroup
from lockstep.ps.standby.registry import StandbyMember, StandbyRegistry
from lockstep.ps.standby.source import MirrorSource
from lockstep.ps.standby.terms import TermHistory, read_terms, write_terms

#: Seconds after which a server that did not look asks its standbys whether one of them leads the run by now, at least;
#: and for how long it waits for an answer. Not sooner: a server to which nobody says anything does not look either.
ABSENT_S, ASK_S = 1.0, 0.5

#: Seconds between two notices to the server that led the run before, until it has read one.
NOTICE_S = 2.0

#: Seconds after a notice in which most answers come: then they are read.
ANSWER_S = 0.1

#: Seconds that standbys have to get the end of a run, or all of one that is handed over; and if it was interrupted.
END_S, HAND_OVER_S, INTERRUPTED_S = 10.0, 30.0, 1.0


@dataclass
class Rival:
    """Another server that may lead the run as well."""

    port: ClientPort
    #: Where it is; empty if that does not matter, since it has led the run.
    address: str
    _: KW_ONLY
    #: Whether it has led the run: a standby that has not reads no notice.
    has_led: bool


@dataclass
class Succession:
    """The standbys of one run, and the servers of its other terms."""

    coordinator: Coordinator
    group: SliceGroup
    #: The folder of the run, and who is admitted.
    source: MirrorSource
    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    _: KW_ONLY
    #: Where this server is reached.
    address: str
    dial: Dial | None = None
    #: The server that led the run before, until it is reached: then it is one of the rivals.
    predecessor: ClientPort | None = None
    #: Other servers that may lead the run as well, until each of them knows who does.
    rivals: list["Rival"] = field(default_factory=list)
    registry: StandbyRegistry = field(default_factory=StandbyRegistry)
    #: By address, standbys that have gone without a word: each of them may lead the run by now.
    absent: dict[str, StandbyAddress] = field(default_factory=dict)
    history: TermHistory = field(init=False)
    #: The standby that the run is handed over to, and whether it has said that it has all of it.
    successor: StandbyAddress | None = None
    is_taken_over: bool = False
    #: How the run ended, and until when standbys may get the rest.
    finish: effects.Finish | None = None
    until: float = 0.0
    #: When the server last looked; those that are asked who leads the run, and until when an answer is awaited.
    _looked: float | None = None
    _asked: list[ClientPort] = field(default_factory=list)
    _ask_until: float = 0.0
    #: Where the rivals are, and those that have read it.
    _dialled: set[str] = field(default_factory=set)
    #: When the rivals are told next, and when their answers are read before that.
    _notice_due: float = 0.0
    _answers_due: float = math.inf

    def __post_init__(self) -> None:
        self.history = read_terms(self.source.folder)
        self.absent = {standby.address: standby for standby in self.history.standbys}

    def reach(self, dial: Dial, predecessor: ClientPort | None) -> None:
        """Learn how other servers are reached. Those that may lead the run as well are told, or tell this one.

        These are the one that led it before, and the standbys that the run had: this server may have been started again
        while they were cut off, and one of them has taken over.
        """
        self.dial = dial
        leader = self.history.earlier_leader(self.address)
        if predecessor is not None:
            self.rivals.append(Rival(predecessor, "", has_led=True))
        elif leader is not None:
            self._dial_rival(dial, leader, has_led=True)
        for standby in self.history.standbys:
            self._dial_rival(dial, standby, has_led=False)

    def _dial_rival(self, dial: Dial, server: StandbyAddress, *, has_led: bool) -> None:
        if server.address in ("", self.address, *self._dialled):
            return
        self._dialled.add(server.address)
        with suppress(LockstepError):
            self.rivals.append(Rival(dial(server.address, server.public), server.address, has_led=has_led))

    @property
    def term(self) -> Term:
        """The term in which this server leads the run."""
        return self.coordinator.info.term

    def close(self) -> None:
        """Close all connections that were opened here."""
        for port in (*self._asked, *(rival.port for rival in self.rivals)):
            port.close()
        self._asked, self.rivals = [], []

    # Standbys and others ask

    def handles(self, peer: bytes, message: Message) -> bool:
        return isinstance(message, StandbyMessage) or (isinstance(message, Leave) and self.has(peer))

    def on_message(self, peer: bytes, message: Message, arrays: Sequence[Vector] = ()) -> Sequence[events.Event]:
        """Handle a message of a standby, of another server, or of a person; return what it means to the coordinator."""
        match message:
            case Leave(reason=reason):
                return self.on_left(peer, one_line(reason), is_done=True)
            case MirrorRequest():
                return self._on_request(peer, message)
            case FilePartRequest():
                return self._send_part(peer, message)
            case LeaderRequest():
                return self._send(peer, LeaderNotice(term=self.term, address=self.address))
            case LeaderNotice() if not self._may_command(peer):
                return []  # a worker does not say who leads
            case LeaderNotice(term=term):
                # What is answered is the higher one of both: so its sender knows that it was read.
                if not term.is_above(self.term):
                    return self._send(peer, LeaderNotice(term=self.term, address=self.address))
                return [*self._send(peer, message), self._superseded(term)]
            case Drain():
                return self._on_drain(peer)
            case Promote():
                text = f"the server at {self.address} leads the run already: promote a standby"
                return self._send(peer, CommandOutcome(is_accepted=False, text=text))
            case _:
                raise AssertionError(message)  # `handles` lets nothing else come here

    def _send(self, peer: bytes, message: Message) -> Sequence[events.Event]:
        return deliver(self.port, peer, encode(message))

    def _superseded(self, term: Term) -> events.Event:
        return events.Superseded(text=superseded_text(term, self.coordinator.info))

    def _may_command(self, peer: bytes) -> bool:
        """Tell whether a peer has a key with which it may mirror the run, or hand it over."""
        return is_standbys(self.port.key_name(peer))

    def _on_request(self, peer: bytes, request: MirrorRequest) -> Sequence[events.Event]:
        refused = self._refusal(peer, request)
        if refused is not None:
            self.say(f"refused a standby of host {request.host!r}: {refused.reason}")
            return self._send(peer, refused)
        if request.term.is_above(self.term):
            return [self._superseded(request.term)]
        is_new = self.registry.on_request(peer, request, self.clock.now())
        if is_new is None:
            reason = f"{len(self.registry.members)} standbys mirror this run: expected no more"
            return self._send(peer, Refused(reason=reason, kind=RefusalKind.FULL))
        self.absent.pop(request.address, None)
        self.history = self.history.with_place(request.address)
        happened = self._on_change(f"standby {request.address} mirrors the run") if is_new else []
        return [*happened, *self._send(peer, self._files(request.address))]

    def _refusal(self, peer: bytes, request: MirrorRequest) -> Refused | None:
        """Return why a standby is refused, None if it is not."""
        if request.protocol != PROTOCOL_VERSION:
            reason = (
                f"the standby speaks protocol {request.protocol}, the server {PROTOCOL_VERSION}: install the same "
                "version of lockstep on both"
            )
            return Refused(reason=reason, kind=RefusalKind.VERSION)
        if not self._may_command(peer):
            reason = (
                f"its key {self.port.key_name(peer)!r} is that of a worker: make one for it with `lockstep keys add "
                "DIR standby-1`, and start it with --key standby-1.key"
            )
            return Refused(reason=reason, kind=RefusalKind.NOT_ALLOWED)
        return None

    def _files(self, standby: str) -> RunFiles:
        info, progress = self.coordinator.info, self.coordinator.progress
        state = "running" if self.finish is None else "over"
        if self.finish is not None and self.finish.kind is FailureKind.HANDED_OVER:
            state = "handed over"
        was_damaged = self.source.is_damaged
        shown = self.source.files(is_over=self.finish is not None and self.finish.kind is None)
        if self.source.is_damaged and not was_damaged:
            folder = str(self.source.folder)
            self.say(warning(f"{folder!r} lacks files of the run: standbys keep those of step {shown.step}"))
        return RunFiles(
            term=self.term,
            run=info.run,
            step=progress.steps,
            steps=info.plan.total_steps,
            checkpoint=shown.step,
            files=[*shown.files],
            electors=self.coordinator.part(HandOver).electors(),
            # Those that are gone too, since each of them may lead the run by now: then the others find it there.
            standbys=tuple(self.history.standbys),
            place=self.history.places[standby],
            options=info.options,
            state=state,  # type: ignore[arg-type]  # one of the three
            successor="" if self.successor is None else self.successor.address,
        )

    def _send_part(self, peer: bytes, asked: FilePartRequest) -> Sequence[events.Event]:
        member = self.registry.by_peer(peer)
        if member is None:
            return []
        member.heard = self.clock.now()
        found = self.source.part(asked)
        if found is None:
            return self._send(peer, self._files(member.request.address))
        part, data = found
        return deliver(self.port, peer, encode(part, [data]))

    # Standbys come and go

    def _on_change(self, text: str) -> Sequence[events.Event]:
        """Let everybody know where to go, this server too if it is started again."""
        self.say(text)
        # Those that have gone without a word as well: one of them may lead the run by now. They come last.
        standbys = (*self.registry.addresses(), *self.absent.values())[:STANDBYS_LIMIT]
        self.history = msgspec.structs.replace(self.history, standbys=[*standbys])
        try:
            write_terms(self.source.folder, self.history)
        except OSError as error:
            self.say(warning(f"cannot write to {str(self.source.folder)!r}: {error.strerror}: the run continues"))
        self.group.initial.standbys = standbys
        return [events.StandbysKnown(standbys=standbys), *self.group.send_all(StandbysChanged(standbys=standbys))]

    def has(self, peer: bytes) -> bool:
        """Tell whether a standby is behind a connection."""
        return self.registry.by_peer(peer) is not None

    def on_left(self, peer: bytes, reason: str, *, is_done: bool = False) -> Sequence[events.Event]:
        """Handle that a standby is gone. It has said so if `is_done`: of a run that is over, it has all then."""
        member = self.registry.remove_peer(peer)
        if member is None:
            return []
        if self.finish is not None:
            self.is_taken_over = self.is_taken_over or (is_done and member.address == self.successor)
            return []
        return self._on_gone(member, reason, has_said_so=is_done)

    def _on_gone(self, member: StandbyMember, reason: str, *, has_said_so: bool = False) -> Sequence[events.Event]:
        if not has_said_so:
            self.absent[member.request.address] = member.address
        return self._on_change(f"standby {member.request.address} left: {reason or 'it has ended'}")

    # The run is handed over, or over

    def _on_drain(self, peer: bytes) -> Sequence[events.Event]:
        if not self._may_command(peer):
            text = "this takes the key of the server, or of a standby"
            return self._send(peer, CommandOutcome(is_accepted=False, text=text))
        obstacle = self.obstacle()
        if obstacle:
            return self._send(peer, CommandOutcome(is_accepted=False, text=obstacle))
        drained = self.hand_over()
        text = f"the run goes on at {drained.successor}, after the step at hand"
        return [*self._send(peer, CommandOutcome(is_accepted=True, text=text)), drained]

    def obstacle(self) -> str:
        """Return why the run cannot be handed over now; empty if it can."""
        best = self.registry.best()
        if best is None:
            return f"no standby mirrors the run: start one with `lockstep server --standby-of {self.address}`"
        if not (best.request.is_whole or best.request.step):
            return f"the standby at {best.request.address} has nothing of the run yet: try again in a moment"
        return ""

    def hand_over(self) -> events.DrainRequested:
        """Choose who leads the run after the step at hand; only if there is no obstacle."""
        best = self.registry.best()
        assert best is not None
        self.successor = best.address
        return events.DrainRequested(successor=self.successor.address)

    def end(self, finish: effects.Finish, now: float) -> None:
        """Begin to let standbys have what the run has come to."""
        self.finish = finish
        limits = {FailureKind.HANDED_OVER: HAND_OVER_S, FailureKind.INTERRUPTED: INTERRUPTED_S}
        is_elsewhere = finish.kind in CONTINUED and finish.kind is not FailureKind.HANDED_OVER
        self.until = now if is_elsewhere else now + (END_S if finish.kind is None else limits.get(finish.kind, END_S))

    def is_over(self, now: float) -> bool:
        """Tell whether nobody is awaited any more."""
        return self.is_taken_over or not self.registry.members or now >= self.until

    def was_in_vain(self) -> bool:
        """Tell whether the run was to be handed over, and the standby did not say in time that it has all of it."""
        is_asked = self.finish is not None and self.finish.kind is FailureKind.HANDED_OVER
        return is_asked and not self.is_taken_over

    def handed_over(self) -> HandedOver | None:
        """Return where the run goes on, if a standby has all of it, and said so."""
        return None if self.successor is None or not self.is_taken_over else HandedOver(standby=self.successor)

    # Other terms

    def deadline(self) -> float | None:
        """Return when `on_time` or `ask` has something to do although no message comes."""
        notice = min(self._notice_due, self._answers_due) if self.rivals else None
        asked = self._ask_until if self._asked else None
        return soonest(self.registry.deadline(), notice, asked, None if self.finish is None else self.until)

    def on_time(self, now: float) -> list[events.Event]:
        """Handle the passing of time."""
        gone = self.registry.expire(now)
        happened = [event for member in gone for event in self._on_gone(member, "it has been silent for too long")]
        is_due = now >= self._notice_due
        if not self.rivals or not (is_due or now >= self._answers_due):
            return happened
        self._answers_due = math.inf
        superseded = [event for rival in list(self.rivals) for event in self._hear(rival)]
        if is_due and not superseded:
            self._notice_due, self._answers_due = now + NOTICE_S, now + ANSWER_S
            for rival in self.rivals:
                self._tell(rival)
        return [*happened, *superseded]

    def _hear(self, rival: "Rival") -> list[events.Event]:
        """Read what another server has answered: one that knows who leads the run needs to be told no more."""
        for answer in leader_notices(rival.port):
            if answer.term.is_above(self.term):
                return [self._superseded(answer.term)]
            if answer.term == self.term:
                rival.port.close()
                self.rivals.remove(rival)
                return []
            rival.has_led = rival.has_led or answer.address == rival.address
            if self.dial is not None:
                # A standby that follows another server: that may lead the run in a term of before.
                found = (one for one in self.history.standbys if one.address == answer.address)
                self._dial_rival(self.dial, next(found, StandbyAddress(address=answer.address)), has_led=True)
        return []

    def _tell(self, rival: "Rival") -> None:
        """Tell another server that may lead the run, until it has answered: it may sleep, or be cut off."""
        with suppress(PeerSlow):
            rival.port.send(encode(LeaderRequest()))
            if rival.has_led:
                rival.port.send(encode(LeaderNotice(term=self.term, address=self.address)))

    def is_asking(self, now: float) -> bool:
        """Tell whether nothing may be done now since it is not known who leads the run; to be called at each step.

        It is not known if this server did not look for a while, as after a stop: then it asks its standbys.
        """
        looked, self._looked = self._looked, now
        absent_s = max(ABSENT_S, self.coordinator.info.options.takeover_seconds / 2)
        if not self._asked and looked is not None and now - looked >= absent_s and self.finish is None:
            self._begin_to_ask(now)
        return bool(self._asked)

    def _begin_to_ask(self, now: float) -> None:
        if self.dial is None:
            return
        self._ask_until = now + ASK_S
        for standby in self.registry.addresses():
            with suppress(LockstepError):
                port = self.dial(standby.address, standby.public)
                self._asked.append(port)
                port.send(encode(LeaderRequest()))

    def ask(self, now: float) -> Sequence[events.Event]:
        """Wait for an answer of those that were asked; without one in time, this server goes on."""
        wait_s = max(0.0, self._ask_until - now) / max(1, len(self._asked))
        answers = [answer for port in self._asked if (answer := leader_notice(port, wait_s)) is not None]
        above = next((answer for answer in answers if answer.term.is_above(self.term)), None)
        if not answers and self.clock.now() < self._ask_until:
            return []
        for port in self._asked:
            port.close()
        self._asked.clear()
        return [] if above is None else [self._superseded(above.term)]


def leader_notices(port: ClientPort) -> Iterator[LeaderNotice]:
    """Yield who leads the run as somebody says who was asked, of all that has come."""
    while (frames := port.receive(0.0)) is not None:
        with suppress(RemoteProtocolError):
            message, _ = decode(frames, ToStandbyMessage)
            if isinstance(message, LeaderNotice):
                yield message


def leader_notice(port: ClientPort, wait_s: float = 0.0) -> LeaderNotice | None:
    """Return who leads the run as somebody says who was asked, None if no answer has come."""
    frames = port.receive(wait_s)
    if frames is None:
        return None
    with suppress(RemoteProtocolError):
        message, _ = decode(frames, ToStandbyMessage)
        if isinstance(message, LeaderNotice):
            return message
    return None
