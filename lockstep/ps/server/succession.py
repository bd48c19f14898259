"""Serves standbys: shows them the files of the run, knows their addresses, hands the run over to one of them.

It also detects servers of other terms: one of them may lead the run by now, and others have to learn that this one
does. A shell.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

import msgspec

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import CONTINUED, FailureKind, RefusalKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    STANDBYS_LIMIT,
    HandedOver,
    Leave,
    Message,
    Refused,
    StandbyAddress,
    StandbysChanged,
    StandbyStatus,
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
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.notice import warning
from lockstep.common.statemachine.leader_inquiry import LOOK_S, LeaderInquiry
from lockstep.common.statemachine.machine import soonest
from lockstep.common.transport.auth.keys import is_standbys
from lockstep.ps.coordinator import effects, events
from lockstep.ps.coordinator.admission import superseded_text
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.shard.outbox import Outbox
from lockstep.ps.shard_group.group import SliceGroup
from lockstep.ps.standby.source import MirrorSource
from lockstep.ps.standby.terms import TermHistory, write_terms

#: Seconds after which a server that did not look asks its standbys, at least. Not sooner: a server to which no process
#: says anything does not look either.
ABSENT_S = 1.0

#: Seconds that standbys have to get the end of a run, or all of one that is handed over; and if it was interrupted.
END_S, HAND_OVER_S, INTERRUPTED_S = 10.0, 30.0, 1.0

#: Seconds of silence after which a standby counts as gone: it asks twice a second.
GONE_S = 10.0

#: Seconds that a server waits for a worker or a standby after the time in which a standby takes over.
ALONE_S = 30.0

#: Seconds for which a server that did not look for a while waits for the answers of its standbys.
HOLD_S = 0.5

#: Seconds between two notices to servers that do not know the term yet, and after a notice until answers are read.
NOTICE_S, ANSWER_S = 2.0, 0.1


def gives_way(mine: Term, steps: int, notice: LeaderNotice) -> bool:
    """Tell whether a server that leads a run in a term, after so many steps, leaves that to the server of a notice.

    A server that loses its folder before the first checkpoint begins another run, whose terms are not compared. If a
    standby has taken over the first one, workers would divide themselves between both; and of shards, each might have
    too few. The run that was taken over goes on; if both were, that with the higher name.
    """
    theirs, has_nothing = notice.term, notice.is_leader and not notice.step and not steps
    is_taken_over = has_nothing and theirs.number > 1 and theirs.run != mine.run
    return is_taken_over and (theirs.run > mine.run or mine.number == 1)


@dataclass
class Rivals:
    """Asks other servers of a run which one leads it, and tells them this server's term until each knows it."""

    inquiry: LeaderInquiry
    #: When the rivals are told next, and when their answers are read before that.
    due: float = 0.0
    answers_due: float = math.inf
    #: When the server last looked, and until when it waits for answers instead of leading the run.
    looked: float | None = None
    held_until: float = -math.inf

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do."""
        return min(self.due, self.answers_due) if self.inquiry.search.unsettled() else None

    def on_time(self, now: float, notice: LeaderNotice) -> Term | None:
        """Read answers, and send a notice if that is due; return a higher term that an answer names."""
        search = self.inquiry.search
        if not search.unsettled() or now < min(self.due, self.answers_due):
            return None
        self.answers_due = math.inf
        above = self.inquiry.hear()
        if above is None and now >= self.due:
            self.due, self.answers_due = now + NOTICE_S, now + ANSWER_S
            self.inquiry.ask(search.unsettled(), notice)
        return above

    def holds(self, now: float, absent_s: float, standbys: Sequence[StandbyAddress]) -> bool:
        """Tell whether it is not known now which server leads, after so many seconds in which this one did not look."""
        search, looked = self.inquiry.search, self.looked
        self.looked = now
        if now < self.held_until:
            asked = {one.address for one in standbys}
            return any(one.address in asked for one in search.unanswered())
        if looked is None or now - looked < absent_s or not standbys:
            return False
        search.named = (*search.named, *standbys)
        for standby in standbys:
            search.notices.pop(standby.address, None)
        self.held_until = now + HOLD_S
        self.inquiry.ask(search.unsettled())
        return True


@dataclass
class StandbyMember:
    """One standby."""

    peer: bytes
    request: MirrorRequest
    heard: float

    @property
    def address(self) -> StandbyAddress:
        return StandbyAddress(address=self.request.address, public=self.request.public)

    def status(self) -> StandbyStatus:
        request = self.request
        return StandbyStatus(address=request.address, host=request.host, step=request.step, is_whole=request.is_whole)


@dataclass
class StandbyRegistry:
    """All standbys, by their addresses, in the order in which they came."""

    members: dict[str, StandbyMember] = field(default_factory=dict)
    #: By address, standbys that have gone without a word: each of them may lead the run by now.
    absent: dict[str, StandbyAddress] = field(default_factory=dict)
    #: Since when no standby and no worker is here; None if one is.
    alone_since: float | None = None

    def on_request(self, peer: bytes, request: MirrorRequest, now: float) -> bool | None:
        """Record that a standby asks; return whether it is new, None if there is no room for another one."""
        known = self.members.get(request.address)
        if known is None and len(self.members) == STANDBYS_LIMIT:
            return None
        is_new = known is None or known.request.public != request.public
        self.members[request.address] = StandbyMember(peer, request, now)
        self.absent.pop(request.address, None)
        return is_new

    def by_peer(self, peer: bytes) -> StandbyMember | None:
        """Return the standby behind a connection, None if it is not a standby."""
        return next((member for member in self.members.values() if member.peer == peer), None)

    def remove_peer(self, peer: bytes) -> StandbyMember | None:
        """Record that a connection is gone; return whose it was."""
        found = self.by_peer(peer)
        return None if found is None else self.members.pop(found.request.address)

    def deadline(self) -> float | None:
        """Return when the next one counts as gone if it stays silent."""
        return min((member.heard + GONE_S for member in self.members.values()), default=None)

    def expire(self, now: float) -> list[StandbyMember]:
        """Remove those that have been silent for too long; return them."""
        gone = [member for member in self.members.values() if now >= member.heard + GONE_S]
        for member in gone:
            del self.members[member.request.address]
        return gone

    def addresses(self) -> tuple[StandbyAddress, ...]:
        """Return where they are."""
        return tuple(member.address for member in self.members.values())

    def statuses(self) -> list[StandbyStatus]:
        """Return how far they are."""
        return [member.status() for member in self.members.values()]

    def best(self) -> StandbyMember | None:
        """Return the standby that has most of the run, None without a standby."""
        members = self.members.values()
        return max(members, key=lambda member: (member.request.is_whole, member.request.step), default=None)


@dataclass
class Succession:
    """The standbys of one run, and the servers of its other terms."""

    coordinator: Coordinator
    group: SliceGroup
    #: The folder of the run, and the list of processes that are admitted.
    source: MirrorSource
    outbox: Outbox
    clock: Clock
    say: Callable[[str], None]
    _: KW_ONLY
    #: The address of this server.
    address: str
    #: The servers of other terms.
    rivals: Rivals
    #: The servers that have led the run, and its standbys.
    history: TermHistory
    registry: StandbyRegistry = field(default_factory=StandbyRegistry)
    #: The standby that the run is handed over to, and whether it has said that it has all of it.
    successor: StandbyAddress | None = None
    is_taken_over: bool = False
    #: How the run ended, and until when standbys may get the rest.
    finish: effects.Finish | None = None
    until: float = 0.0

    def __post_init__(self) -> None:
        absent = {one.address: one for one in self.history.standbys if one.address != self.address}
        self.registry.absent = absent
        # One of them may lead the run if this server is lost again before any of them is back.
        self.group.shards.standbys = self.coordinator.admission.standbys = tuple(absent.values())

    @property
    def term(self) -> Term:
        """The term in which this server leads the run."""
        return self.coordinator.info.term

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
                return self.outbox.send(peer, self._notice())
            case LeaderNotice() if not self._may_command(peer):
                return []  # a worker does not decide which server leads
            case LeaderNotice(term=term):
                # The higher one of both is the answer: so its sender knows that it was read.
                if not term.is_above(self.term) and not self._gives_way(message):
                    return self.outbox.send(peer, self._notice())
                return [*self.outbox.send(peer, message), self._superseded(term)]
            case Drain():
                return self._on_drain(peer)
            case Promote():
                text = f"the server at {self.address} leads the run already: promote a standby"
                return self.outbox.send(peer, CommandOutcome(is_accepted=False, text=text))
            case _:
                raise AssertionError(message)  # `handles` lets nothing else come here

    def _notice(self) -> LeaderNotice:
        steps = self.coordinator.progress.steps
        return LeaderNotice(term=self.term, address=self.address, step=steps, is_leader=True)

    def _gives_way(self, notice: LeaderNotice) -> bool:
        return gives_way(self.term, self.coordinator.progress.steps, notice)

    def _superseded(self, term: Term) -> events.Event:
        text = superseded_text(term, self.coordinator.info)
        return events.PartFailed(text=text, kind=FailureKind.SUPERSEDED)

    def _may_command(self, peer: bytes) -> bool:
        """Tell whether a peer has a key with which it may mirror the run, or hand it over."""
        return is_standbys(self.outbox.port.key_name(peer))

    def _on_request(self, peer: bytes, request: MirrorRequest) -> Sequence[events.Event]:
        refused = self._refusal(peer, request)
        if refused is not None:
            self.say(f"refused a standby of host {request.host!r}: {refused.reason}")
            return self.outbox.send(peer, refused)
        if request.term.is_above(self.term):
            return [self._superseded(request.term)]
        is_new = self.registry.on_request(peer, request, self.clock.now())
        if is_new is None:
            reason = f"{len(self.registry.members)} standbys mirror this run: expected no more"
            return self.outbox.send(peer, Refused(reason=reason, kind=RefusalKind.FULL))
        happened = self._on_change(f"standby {request.address} mirrors the run") if is_new else []
        return [*happened, *self.outbox.send(peer, self._files())]

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
                f"its key {self.outbox.port.key_name(peer)!r} is that of a worker: make one for it with `lockstep keys "
                "add DIR standby-1`, and start it with --key standby-1.key"
            )
            return Refused(reason=reason, kind=RefusalKind.NOT_ALLOWED)
        return None

    def _files(self) -> RunFiles:
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
            electors=self.coordinator.membership.electors(info.machine),
            # Those that are gone too, since each of them may lead the run by now: then the others find it there.
            standbys=tuple(self.history.standbys),
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
            return self.outbox.send(peer, self._files())
        part, data = found
        return self.outbox.send(peer, part, data)

    # Standbys come and go

    def _on_change(self, text: str) -> Sequence[events.Event]:
        """Let all processes know where to go, this server too if it is restarted."""
        self.say(text)
        # Those that have gone without a word as well: one of them may lead the run by now. They come last.
        standbys = (*self.registry.addresses(), *self.registry.absent.values())[:STANDBYS_LIMIT]
        self.history = msgspec.structs.replace(self.history, standbys=[*standbys])
        try:
            write_terms(self.source.folder, self.history)
        except OSError as error:
            self.say(warning(f"cannot write to {str(self.source.folder)!r}: {error.strerror}: the run continues"))
        changed, workers = StandbysChanged(standbys=standbys), self.coordinator.membership.members
        self.group.shards.standbys = self.coordinator.admission.standbys = standbys
        return [
            *self.group.send_all(changed),
            *(event for peer in workers for event in self.outbox.send(peer, changed)),
        ]

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
            self.registry.absent[member.request.address] = member.address
        return self._on_change(f"standby {member.request.address} left: {reason or 'it has ended'}")

    # The run is handed over, or over

    def _on_drain(self, peer: bytes) -> Sequence[events.Event]:
        if not self._may_command(peer):
            text = "this takes the key of the server, or of a standby"
            return self.outbox.send(peer, CommandOutcome(is_accepted=False, text=text))
        obstacle = self.obstacle()
        if obstacle:
            return self.outbox.send(peer, CommandOutcome(is_accepted=False, text=obstacle))
        drained = self.hand_over()
        assert self.successor is not None  # it was chosen
        text = f"the run goes on at {self.successor.address}, after the current step"
        return [*self.outbox.send(peer, CommandOutcome(is_accepted=True, text=text)), drained]

    def obstacle(self) -> str:
        """Return why the run cannot be handed over now; empty if it can."""
        best = self.registry.best()
        if best is None:
            command = f"lockstep server --standby-of {self.address} --bind ADDRESS --run-dir DIR"
            return f"no standby mirrors the run: start one with `{command}`, and with --keys or --key if it has keys"
        if not (best.request.is_whole or best.request.step):
            return f"the standby at {best.request.address} has nothing of the run yet: try again in a moment"
        return ""

    def hand_over(self) -> events.DrainRequested:
        """Choose the standby that leads the run after the current step; only if there is no obstacle."""
        best = self.registry.best()
        assert best is not None
        self.successor = best.address
        text = f"the run was handed over to {self.successor.address}"
        return events.DrainRequested(reason=text, kind=FailureKind.HANDED_OVER)

    def end(self, finish: effects.Finish, now: float) -> None:
        """Begin to let standbys have the outcome of the run."""
        self.finish = finish
        limits = {FailureKind.HANDED_OVER: HAND_OVER_S, FailureKind.INTERRUPTED: INTERRUPTED_S}
        is_elsewhere = finish.kind in CONTINUED and finish.kind is not FailureKind.HANDED_OVER
        self.until = now if is_elsewhere else now + (END_S if finish.kind is None else limits.get(finish.kind, END_S))

    def is_over(self, now: float) -> bool:
        """Tell whether no standby is awaited any more."""
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
        """Return when `on_time` has something to do although no message comes."""
        end = None if self.finish is None else self.until
        return soonest(self.registry.deadline(), self.rivals.deadline(), end, self._gives_up_at())

    def _gives_up_at(self) -> float | None:
        """Return when this server ends if no process comes back; None if one is here, or no standby may lead the run.

        A server may be cut off until its standby has led the run to its end. Then no process is left to report that.
        """
        may_be_led = self.registry.absent and self.coordinator.membership.last_ranks and self.finish is None
        if not may_be_led or self.registry.alone_since is None or self._is_accompanied():
            return None
        return self.registry.alone_since + self.coordinator.info.options.takeover_seconds + ALONE_S

    def _is_accompanied(self) -> bool:
        return bool(self.registry.members or self.coordinator.membership.members)

    def on_time(self, now: float) -> list[events.Event]:
        """Handle the passing of time."""
        gone = self.registry.expire(now)
        happened = [event for member in gone for event in self._on_gone(member, "it has been silent for too long")]
        above = self.rivals.on_time(now, self._notice())
        answers = self.rivals.inquiry.search.notices.values()
        terms = [each.term for each in answers if self._gives_way(each)] if above is None else [above]
        happened = [*happened, *map(self._superseded, terms[:1])]
        gives_up_at = self._gives_up_at()
        if not happened and gives_up_at is not None and now >= gives_up_at:
            alone_s, named = self.coordinator.info.options.takeover_seconds + ALONE_S, ", ".join(self.registry.absent)
            text = f"no worker and no standby for {alone_s:.0f} s: the run may have been led to its end at {named}"
            return [events.PartFailed(text=text, kind=FailureKind.SUPERSEDED)]
        return happened

    def is_asking(self, now: float) -> bool:
        """Tell whether nothing may be done now because it is not known which server leads; to be called at each step.

        It is not known if this server did not look for a while, as after a stop: then it asks its standbys.
        """
        gives_up_at = self._gives_up_at()
        # A server that was stopped has not listened: processes may have tried to reach it for as long.
        has_overslept = gives_up_at is not None and now >= gives_up_at + ABSENT_S
        if self._is_accompanied():
            self.registry.alone_since = None
        elif self.registry.alone_since is None or has_overslept:
            self.registry.alone_since = now
        absent_s = max(ABSENT_S, self.coordinator.info.options.takeover_seconds / 2)
        standbys = () if self.finish is not None else self.registry.addresses()
        return self.rivals.holds(now, absent_s, standbys)

    def ask(self) -> Sequence[events.Event]:
        """Wait a little for an answer of the standbys; without one in time, this server continues."""
        above = self.rivals.inquiry.hear(LOOK_S)
        return [] if above is None else [self._superseded(above)]

    def close(self) -> None:
        """Close all connections that were opened here."""
        self.rivals.inquiry.close()
