"""The shards as the server sees them: who has which slice, which sums all of them have, how far an update is. Pure.

The coordinator's own slice is the first, and no member: a group of one server has no members, and waits for nobody.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import CONTINUED, RefusalKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import Eviction, Finished, Message, Ping, Refused, shortened
from lockstep.common.protocol.shard_messages import (
    ShardJoin,
    ShardReady,
    Squares,
    SquaresRequest,
    SumsAck,
    Update,
    UpdateDone,
)
from lockstep.common.statemachine.machine import (
    IGNORED,
    Machine,
    PeerLeft,
    Received,
    Report,
    ReportRefusal,
    Send,
    TimePassed,
    leads,
    soonest,
    stays,
    table_of,
)
from lockstep.ps.coordinator.admission import refusal, refused, superseded_text, through_its_socket, without_memory
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.coordinator.events import ServerLost, ServersReady, StepUpdated, SumsAcknowledged
from lockstep.ps.coordinator.status import Reminder
from lockstep.ps.run.info import RunInfo

#: Seconds between two pings of a shard: sending to a process that is gone fails, and so is its death noticed.
PING_S = 1.0


class GroupPhase(Enum):
    """The phases of the shards of a run."""

    #: Not all have joined.
    WAITING = "waiting for servers"
    #: Sums of a step are on their way into their trees.
    ADDING = "adding sums"
    #: Clipping needs the norm of the whole gradient.
    MEASURING = "measuring the gradient"
    #: Each makes the update of its slice.
    UPDATING = "updating"
    #: The run is over.
    ENDED = "ended"


# Events


class ScaleFound(Struct, frozen=True, kw_only=True):
    """The factor of clipping, from the squares of all shards."""

    scale: float


class OwnSliceUpdated(Struct, frozen=True, kw_only=True):
    """The server's own slice has its new weights."""

    step: int


#: What happens to the group. The message of an update is one if all results of the step count: nobody knows the factor
#: of clipping yet. `Finish` is the coordinator's effect as it is.
GroupEvent = Received | Update | ScaleFound | OwnSliceUpdated | PeerLeft | TimePassed | Finish

# Effects


class WelcomeShard(Struct, frozen=True, kw_only=True):
    """Send a shard its place and the job."""

    peer: bytes
    index: int


class FillShard(Struct, frozen=True, kw_only=True):
    """Send a shard what its slice begins with: the weights only if it does not share them."""

    peer: bytes
    index: int
    shares: bool


class FindScale(Struct, frozen=True, kw_only=True):
    """Find the factor of clipping: the squares of all shards have come."""


#: Of these, the coordinator's events are what it is to handle, and `Update` is to be made of the server's own slice:
#: answered by `OwnSliceUpdated`.
GroupEffect = (
    Send
    | WelcomeShard
    | FillShard
    | ServersReady
    | SumsAcknowledged
    | FindScale
    | Update
    | StepUpdated
    | ServerLost
    | Report
    | ReportRefusal
)

_WAITING, _ADDING, _MEASURING, _UPDATING, _ENDED = GroupPhase

#: What comes too late in all other phases.
_LATE = leads(IGNORED, *GroupPhase)

#: What may follow. Before all shards are ready no work is leased, and while they update no result can count.
TRANSITIONS = table_of(
    GroupPhase,
    {
        ShardJoin: stays(*GroupPhase),
        ShardReady: _LATE | {_WAITING: {_WAITING, _ADDING}},
        Ping: stays(_WAITING, _ADDING, _MEASURING, _UPDATING) | leads(IGNORED, _ENDED),
        SumsAck: _LATE | stays(_ADDING),
        Update: leads({_MEASURING, _UPDATING}, _ADDING) | leads(IGNORED, _ENDED),
        Squares: _LATE | stays(_MEASURING),
        ScaleFound: leads({_UPDATING}, _MEASURING) | leads(IGNORED, _ENDED),
        OwnSliceUpdated: leads({_UPDATING, _ADDING}, _UPDATING) | leads(IGNORED, _ENDED),
        UpdateDone: _LATE | leads({_UPDATING, _ADDING}, _UPDATING),
        PeerLeft: stays(_WAITING) | leads({_ENDED}, _ADDING, _MEASURING, _UPDATING) | leads(IGNORED, _ENDED),
        TimePassed: {
            _WAITING: {_WAITING},
            _ADDING: {_ADDING, _ENDED},
            _MEASURING: {_MEASURING, _ENDED},
            _UPDATING: {_UPDATING, _ENDED},
            _ENDED: IGNORED,
        },
        Finish: leads({_ENDED}, _WAITING, _ADDING, _MEASURING, _UPDATING) | leads(IGNORED, _ENDED),
    },
)


@dataclass
class ShardMember:
    """One shard of the group."""

    peer: bytes
    #: Of its slice, from 1 on.
    index: int
    join: ShardJoin
    #: When the last message of it came.
    heard: float
    is_ready: bool = False
    shares: bool = False
    obstacle: str = ""

    def named(self) -> str:
        """Return its name in messages to people."""
        return f"shard {self.index} (host {self.join.host}, pid {self.join.pid})"


@dataclass
class ShardGroup(Machine[GroupEvent, GroupEffect]):
    """The shards of a run."""

    transitions = TRANSITIONS
    info: RunInfo
    #: The step whose sums are added.
    step: int = 0
    phase: GroupPhase = field(init=False)
    members: dict[bytes, ShardMember] = field(default_factory=dict)
    reminder: Reminder = field(default_factory=Reminder)
    #: When shards are pinged next.
    next_ping: float = 0.0
    #: By worker and node, which shards have the sums.
    confirmed: dict[tuple[int, Node], set[int]] = field(default_factory=dict)
    #: Shards that have answered the last request to all.
    answered: set[int] = field(default_factory=set)
    #: The update under way, and whether the server's own slice has been updated.
    update: Update | None = None
    is_own_updated: bool = False
    #: What shards hear of the end of the run, None while it is not over, or is continued.
    end: Finished | None = None

    def __post_init__(self) -> None:
        self.phase = GroupPhase.WAITING if self.others else GroupPhase.ADDING

    @property
    def others(self) -> int:
        """The number of servers but the coordinator's."""
        return self.info.options.servers - 1

    def handle(self, event: GroupEvent, now: float) -> list[GroupEffect]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        if self.phase is GroupPhase.ENDED or not self.others:
            return None
        return soonest(self.next_ping, self.reminder.due)

    def react(self, event: GroupEvent, now: float) -> list[GroupEffect]:
        match event:
            case Received(peer=peer, message=message):
                return self._on_message(peer, message, now)
            case Update():
                return self._begin_update(event)
            case ScaleFound(scale=scale):
                return self._update(scale)
            case OwnSliceUpdated():
                self.is_own_updated = True
                return self._complete()
            case PeerLeft():
                return self._gone(event)
            case TimePassed():
                return self._time_passed(now)
            case Finish(failure=reason, kind=kind):
                self.phase = GroupPhase.ENDED
                if kind in CONTINUED:
                    return []
                self.end = Finished(reason=shortened(reason))
                return [Send(peer=peer, message=self.end) for peer in self.members]
            case _:
                assert_never(event)

    def _on_message(self, peer: bytes, message: Message, now: float) -> list[GroupEffect]:
        match message:
            case ShardJoin():
                return self._join(peer, message, now)
            case ShardReady():
                return self._prepared(peer, message, now)
            case SumsAck():
                return self._confirmed(peer, message, now)
            case Squares(step=step):
                return [FindScale()] if self._is_last_answer(peer, step, now) else []
            case UpdateDone(step=step):
                return self._complete() if self._is_last_answer(peer, step, now) else []
            case _:
                self._heard(peer, now)
                return []

    def _heard(self, peer: bytes, now: float) -> ShardMember | None:
        member = self.members.get(peer)
        if member is not None:
            member.heard = now
        return member

    # Shards join

    def _join(self, peer: bytes, join: ShardJoin, now: float) -> list[GroupEffect]:
        if self._heard(peer, now) is not None:
            return []
        if self.phase is GroupPhase.ENDED:
            # As a worker that comes too late: started again by hand or by a script, it has done nothing wrong.
            return [] if self.end is None else [Send(peer=peer, message=self.end)]
        if (why := self._refusal(join)) is not None:
            return [Send(peer=peer, message=why), ReportRefusal(text=f"refused a shard: {why.reason}")]
        taken = {member.index for member in self.members.values()}
        index = next(index for index in range(1, self.info.options.servers) if index not in taken)
        member = self.members[peer] = ShardMember(peer, index, join, heard=now)
        return [WelcomeShard(peer=peer, index=index), Report(text=f"{member.named()} joined")]

    def _refusal(self, join: ShardJoin) -> Refused | None:
        """Return why a shard is refused, None if it is not."""
        info = self.info
        if not self.others:
            return refused(RefusalKind.FULL, "this run has one server: start that with --servers 2 or more")
        if join.term.is_above(info.term):
            return refused(RefusalKind.OLD_TERM, superseded_text(join.term, info))
        if len(self.members) == self.others:
            text = f"all {info.options.servers} servers of this run are there: start the server with more --servers"
            return refused(RefusalKind.FULL, text)
        return refusal(join, info.fingerprint, allows_mixed_numerics=info.options.allow_mixed_numerics)

    def _prepared(self, peer: bytes, ready: ShardReady, now: float) -> list[GroupEffect]:
        member, shares, obstacle = self._heard(peer, now), bool(ready.nonce), one_line(ready.obstacle)
        if member is None or member.is_ready:
            return []
        if self.info.needs_memory and not shares:
            del self.members[peer]
            return [*without_memory(peer, member.named(), obstacle)]
        member.is_ready, member.shares, member.obstacle = True, shares, obstacle
        fill = FillShard(peer=peer, index=member.index, shares=shares)
        return [fill, *through_its_socket(member.named(), obstacle), *self._announce(), *self._remind(now)]

    def _announce(self) -> list[GroupEffect]:
        members = self.in_order()
        if sum(member.is_ready for member in members) < self.others:
            return []
        self.phase = GroupPhase.ADDING
        return [
            ServersReady(
                addresses=tuple(member.join.address for member in members),
                shares=all(member.shares for member in members),
                obstacle=next((member.obstacle for member in members if member.obstacle), ""),
            )
        ]

    def in_order(self) -> list[ShardMember]:
        """Return the shards in the order of their slices."""
        return sorted(self.members.values(), key=lambda member: member.index)

    # Sums are added

    def _confirmed(self, peer: bytes, ack: SumsAck, now: float) -> list[GroupEffect]:
        member = self._heard(peer, now)
        if member is None or ack.step != self.step:
            return []
        having = self.confirmed.setdefault((ack.rank, ack.node()), set())
        having.add(member.index)
        return [SumsAcknowledged(rank=ack.rank, node=ack.node())] if len(having) == self.others else []

    # Weights are updated

    def _begin_update(self, update: Update) -> list[GroupEffect]:
        self.update = update
        if self.info.job.clip_norm is None or not self.others:
            return self._update(None)  # a shard of the whole vector finds the factor of clipping itself
        self.phase = GroupPhase.MEASURING
        asked = SquaresRequest(step=update.step, divisor=update.divisor)
        return [Send(peer=peer, message=asked) for peer in self.members]

    def _update(self, scale: float | None) -> list[GroupEffect]:
        assert self.update is not None
        self.phase, self.is_own_updated = GroupPhase.UPDATING, False
        self.answered.clear()
        message = replace(self.update, scale=scale)
        # The others first, so that all update at the same time.
        effects: list[GroupEffect] = [Send(peer=peer, message=message) for peer in self.members]
        return [*effects, message]

    def _is_last_answer(self, peer: bytes, step: int, now: float) -> bool:
        """Record an answer to a request to all; return whether it is the last."""
        member = self._heard(peer, now)
        if member is None or self.update is None or step != self.update.step or member.index in self.answered:
            return False
        self.answered.add(member.index)
        return len(self.answered) == self.others

    def _complete(self) -> list[GroupEffect]:
        """End the update if all slices have their new weights."""
        if not self.is_own_updated or len(self.answered) < self.others:
            return []
        assert self.update is not None
        done, self.update = self.update.step, None
        self.phase, self.step = GroupPhase.ADDING, done + 1
        self.confirmed.clear()
        self.answered.clear()
        return [StepUpdated(step=done)]

    # Shards fail

    def _gone(self, event: PeerLeft) -> list[GroupEffect]:
        if event.peer not in self.members:
            return []
        member = self.members[event.peer]
        if self.phase is GroupPhase.WAITING:
            del self.members[event.peer]
            return [Report(text=f"{member.named()} left: {event.reason}")]
        return self._lose(member, event.reason)

    def _lose(self, member: ShardMember, reason: str) -> list[GroupEffect]:
        """End the run: the slice, and with it the optimizer's state, is nowhere else."""
        self.phase = GroupPhase.ENDED
        lost = f"{member.named()} is gone, and its slice of the weights with it: {reason}"
        evicted = Eviction(reason=shortened(lost))
        others = [Send(peer=peer, message=evicted) for peer in self.members if peer != member.peer]
        return [*others, ServerLost(text=lost)]

    def _time_passed(self, now: float) -> list[GroupEffect]:
        if now >= self.next_ping:
            self.next_ping = now + PING_S
            for member in self.in_order():
                if now - member.heard >= self.info.options.lease_timeout and self.phase is not GroupPhase.WAITING:
                    return self._lose(member, f"it has been silent for {now - member.heard:.0f} s")
            pings: list[GroupEffect] = [Send(peer=peer, message=Ping()) for peer in self.members]
            return [*pings, *self._remind(now)]
        return self._remind(now)

    def _remind(self, now: float) -> list[GroupEffect]:
        ready = sum(member.is_ready for member in self.members.values())
        text = f"waiting for shards: {ready} of {self.others} are ready"
        is_waiting = self.phase is GroupPhase.WAITING
        return [Report(text=text, is_reminder=True)] if self.reminder.is_due(now, is_waiting=is_waiting) else []

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        indices = [member.index for member in self.members.values()]
        assert len(set(indices)) == len(indices), "two shards have one slice"
        assert all(0 < index < self.info.options.servers for index in indices)
        if self.phase not in (GroupPhase.WAITING, GroupPhase.ENDED):
            assert len(indices) == self.others, "a slice is nobody's"
        assert (self.update is not None) == (self.phase in (GroupPhase.MEASURING, GroupPhase.UPDATING)) or (
            self.phase is GroupPhase.ENDED
        )
