"""The shards as the server sees them: who has which slice, which sums all of them have, how far an update is. Pure.

`handle(event, now)` returns what is to be done; `deadline()` says when to call again if nothing happens before. The
coordinator's own slice is the first, and no member: a group of one server has no members, and waits for nobody.
"""

from dataclasses import dataclass, field
from typing import assert_never

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind, RefusalKind
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.messages import Finished, Ping, Refused, shortened
from lockstep.common.protocol.shard_messages import ShardJoin, SquaresRequest, Update
from lockstep.common.statemachine.transitions import check_reached, targets_in
from lockstep.ps.coordinator.registration import Refusal, refusal
from lockstep.ps.coordinator.status import Reminder
from lockstep.ps.shard_group import events
from lockstep.ps.shard_group.effects import (
    AnnounceGroup,
    CompleteStep,
    ConfirmSums,
    FillShard,
    FindScale,
    GroupEffect,
    LoseShard,
    Report,
    ReportRefusal,
    Send,
    UpdateOwnSlice,
    WelcomeShard,
)
from lockstep.ps.shard_group.transitions import TRANSITIONS, GroupPhase

#: Seconds between two pings of a shard: sending to a process that is gone fails, and so is its death noticed.
PING_S = 1.0


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """What is known of the shards from the start."""

    #: Servers in all, with the coordinator's own slice.
    servers: int
    fingerprint: Fingerprint
    allows_mixed_numerics: bool = False
    #: Refuse shards that do not share the server's memory.
    needs_memory: bool = False
    #: Seconds after which a silent shard counts as gone.
    silence_s: float = 60.0


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
class ShardGroup:
    """The shards of a run; see `lockstep.ps.shard_group.transitions` for the table that it obeys."""

    config: GroupConfig
    #: The step whose sums are added.
    step: int = 0
    phase: GroupPhase = field(init=False)
    members: dict[bytes, ShardMember] = field(default_factory=dict)
    reminder: Reminder = field(default_factory=Reminder)
    #: When shards are pinged next.
    next_ping: float = 0.0
    #: By worker and node, which shards have the sums.
    confirmed: dict[tuple[int, Node], set[int]] = field(default_factory=dict)
    #: Results that count as soon as all shards have their sums.
    awaited: set[tuple[int, Node]] = field(default_factory=set)
    #: Shards that have answered the last request to all.
    answered: set[int] = field(default_factory=set)
    #: The update under way, and whether the server's own slice has been updated.
    update: events.TreeCompleted | None = None
    is_own_updated: bool = False

    def __post_init__(self) -> None:
        self.phase = GroupPhase.WAITING if self.others else GroupPhase.ADDING

    @property
    def others(self) -> int:
        """The number of servers but the coordinator's."""
        return self.config.servers - 1

    def handle(self, event: events.GroupEvent, now: float) -> list[GroupEffect]:
        """Handle what happened at `now` seconds; return what is to be done, in order."""
        targets = targets_in(TRANSITIONS, self.phase, event)
        if not targets:
            return []
        effects = self._react(event, now)
        check_reached(targets, event, self.phase)
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due, None if never."""
        if self.phase is GroupPhase.ENDED or not self.others:
            return None
        return self.next_ping if self.reminder.due is None else min(self.next_ping, self.reminder.due)

    def _react(self, event: events.GroupEvent, now: float) -> list[GroupEffect]:
        match event:
            case events.ShardJoined():
                return self._join(event, now)
            case events.ShardPrepared():
                return self._prepared(event, now)
            case events.ShardPinged():
                self._heard(event.peer, now)
                return []
            case events.SumsAwaited():
                self.awaited.add((event.rank, event.node))
                return self._confirm((event.rank, event.node))
            case events.SumsConfirmed():
                return self._confirmed(event, now)
            case events.WorkerRemoved():
                return self._remove_worker(event.rank)
            case events.TreeCompleted():
                return self._begin_update(event)
            case events.SquaresReceived():
                return [FindScale()] if self._is_last_answer(event.peer, event.step, now) else []
            case events.ScaleFound():
                return self._update(event.scale)
            case events.OwnSliceUpdated():
                self.is_own_updated = True
                return self._complete()
            case events.SliceUpdated():
                return self._complete() if self._is_last_answer(event.peer, event.step, now) else []
            case events.ShardGone():
                return self._gone(event)
            case events.TimePassed():
                return self._time_passed(now)
            case events.RunEnded():
                self.phase = GroupPhase.ENDED
                return [Send(peer=peer, message=Finished(reason=shortened(event.reason))) for peer in self.members]
            case _:
                assert_never(event)

    def _heard(self, peer: bytes, now: float) -> ShardMember | None:
        member = self.members.get(peer)
        if member is not None:
            member.heard = now
        return member

    # Shards join

    def _join(self, event: events.ShardJoined, now: float) -> list[GroupEffect]:
        if self._heard(event.peer, now) is not None:
            return []
        if (why := self._refusal(event.join)) is not None:
            refused = Send(peer=event.peer, message=why.message())
            return [refused, ReportRefusal(text=f"refused a shard: {why.reason}")]
        taken = {member.index for member in self.members.values()}
        index = next(index for index in range(1, self.config.servers) if index not in taken)
        member = self.members[event.peer] = ShardMember(event.peer, index, event.join, heard=now)
        return [WelcomeShard(peer=event.peer, index=index), Report(text=f"{member.named()} joined")]

    def _refusal(self, join: ShardJoin) -> Refusal | None:
        """Return why a shard is refused, None if it is not."""
        config = self.config
        if not self.others:
            return Refusal(RefusalKind.FULL, "this run has one server: start that with --servers 2 or more")
        if self.phase is GroupPhase.ENDED:
            return Refusal(RefusalKind.OVER, "the run is over")
        if len(self.members) == self.others:
            text = f"all {config.servers} servers of this run are there: start the server with more --servers"
            return Refusal(RefusalKind.FULL, text)
        return refusal(join, config.fingerprint, allows_mixed_numerics=config.allows_mixed_numerics)

    def _prepared(self, event: events.ShardPrepared, now: float) -> list[GroupEffect]:
        member = self._heard(event.peer, now)
        if member is None or member.is_ready:
            return []
        if self.config.needs_memory and not event.shares:
            del self.members[event.peer]
            reason = f"it does not share the server's memory: {event.obstacle}"
            refused = Send(peer=event.peer, message=Refused(reason=shortened(reason), kind=RefusalKind.MEMORY))
            return [refused, Report(text=f"refused {member.named()}: {reason}")]
        member.is_ready, member.shares, member.obstacle = True, event.shares, event.obstacle
        effects: list[GroupEffect] = [FillShard(peer=member.peer, index=member.index, shares=member.shares)]
        if member.obstacle:
            effects.append(
                Report(text=f"{member.named()} exchanges gradients and weights through its socket: {member.obstacle}")
            )
        return [*effects, *self._announce(), *self._remind(now)]

    def _announce(self) -> list[GroupEffect]:
        members = self.in_order()
        if sum(member.is_ready for member in members) < self.others:
            return []
        self.phase = GroupPhase.ADDING
        return [
            AnnounceGroup(
                addresses=tuple(member.join.address for member in members),
                shares=all(member.shares for member in members),
                obstacle=next((member.obstacle for member in members if member.obstacle), ""),
            )
        ]

    def in_order(self) -> list[ShardMember]:
        """Return the shards in the order of their slices."""
        return sorted(self.members.values(), key=lambda member: member.index)

    # Sums are added

    def _confirmed(self, event: events.SumsConfirmed, now: float) -> list[GroupEffect]:
        member, ack = self._heard(event.peer, now), event.ack
        if member is None or ack.step != self.step:
            return []
        key = (ack.rank, ack.node())
        self.confirmed.setdefault(key, set()).add(member.index)
        return self._confirm(key)

    def _confirm(self, key: tuple[int, Node]) -> list[GroupEffect]:
        if key not in self.awaited or len(self.confirmed.get(key, ())) < self.others:
            return []
        self.awaited.remove(key)
        return [ConfirmSums(rank=key[0], node=key[1])]

    def _remove_worker(self, rank: int) -> list[GroupEffect]:
        for key in [key for key in (*self.confirmed, *self.awaited) if key[0] == rank]:
            self.confirmed.pop(key, None)
            self.awaited.discard(key)
        return []

    # Weights are updated

    def _begin_update(self, event: events.TreeCompleted) -> list[GroupEffect]:
        self.update = event
        if not event.is_clipped or not self.others:
            return self._update(None)  # a shard of the whole vector finds the factor of clipping itself
        self.phase = GroupPhase.MEASURING
        asked = SquaresRequest(step=event.step, count=event.count)
        return [Send(peer=peer, message=asked) for peer in self.members]

    def _update(self, scale: float | None) -> list[GroupEffect]:
        at = self.update
        assert at is not None
        self.phase, self.is_own_updated = GroupPhase.UPDATING, False
        self.answered.clear()
        message = Update(step=at.step, count=at.count, scale=scale, ranks=list(at.ranks), collected=at.collected)
        # The others first, so that all update at the same time.
        effects: list[GroupEffect] = [Send(peer=peer, message=message) for peer in self.members]
        return [*effects, UpdateOwnSlice(step=at.step, count=at.count, scale=scale)]

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
        self.awaited.clear()
        self.answered.clear()
        return [CompleteStep(step=done)]

    # Shards fail

    def _gone(self, event: events.ShardGone) -> list[GroupEffect]:
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
        finished = Finished(reason=shortened(lost), kind=FailureKind.SERVER_LOST)
        others = [Send(peer=peer, message=finished) for peer in self.members if peer != member.peer]
        return [*others, LoseShard(text=lost)]

    def _time_passed(self, now: float) -> list[GroupEffect]:
        if now >= self.next_ping:
            self.next_ping = now + PING_S
            for member in self.in_order():
                if now - member.heard >= self.config.silence_s and self.phase is not GroupPhase.WAITING:
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
        assert all(0 < index < self.config.servers for index in indices)
        if self.phase not in (GroupPhase.WAITING, GroupPhase.ENDED):
            assert len(indices) == self.others, "a slice is nobody's"
        assert (self.update is not None) == (self.phase in (GroupPhase.MEASURING, GroupPhase.UPDATING)) or (
            self.phase is GroupPhase.ENDED
        )
