"""The shards as the server sees them: who has which slice, which sums all of them have, how far an update is. Pure.

`handle(event, now)` returns what is to be done; `deadline()` says when to call again if nothing happens before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from common.aggregation.tree import Node
from common.errors import FailureKind, RefusalKind
from common.protocol.messages import Finished, Ping, Refused, shortened
from common.protocol.shard_messages import ShardJoin, SquaresRequest, Update
from common.statemachine.transitions import check_reached, targets_in
from ps.coordinator.admission import refusal
from ps.coordinator.reminder import Reminder
from ps.sharding.group import events
from ps.sharding.group.effects import (
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
from ps.sharding.group.member import GroupConfig, ShardMember
from ps.sharding.group.transitions import TRANSITIONS, GroupPhase

#: Seconds between two words to a shard: sending to a process that is gone fails, and so is its death noticed.
PROBE_S = 1.0


@dataclass
class ShardGroup:
    """The shards of a run; see `ps.sharding.group.transitions` for the table that it obeys."""

    facts: GroupConfig
    phase: GroupPhase = GroupPhase.MUSTERING
    seats: dict[bytes, ShardMember] = field(default_factory=dict)
    reminder: Reminder = field(default_factory=Reminder)
    #: When shards are to be probed next.
    probe: float = 0.0
    #: The step whose sums are stored, and by worker and node which shards have them.
    step: int = 0
    stored: dict[tuple[int, Node], set[int]] = field(default_factory=dict)
    #: Results that count as soon as all shards have their sums.
    awaited: set[tuple[int, Node]] = field(default_factory=set)
    #: Shards that have answered what was last asked of all.
    answered: set[int] = field(default_factory=set)
    #: The update at hand.
    tree: events.TreeCompleted | None = None

    def handle(self, event: events.GroupEvent, now: float) -> list[GroupEffect]:
        """Take in what happened at `now` seconds; return what is to be done, in order."""
        targets = targets_in(TRANSITIONS, self.phase, event)
        if not targets:
            return []
        effects = self._react(event, now)
        check_reached(targets, event, self.phase)
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due, None once all is over."""
        if self.phase is GroupPhase.ENDED:
            return None
        return self.probe if self.reminder.due is None else min(self.probe, self.reminder.due)

    def _react(self, event: events.GroupEvent, now: float) -> list[GroupEffect]:
        match event:
            case events.ShardJoined():
                return self._join(event, now)
            case events.ShardPrepared():
                return self._prepared(event, now)
            case events.ShardHeard():
                self._hear(event.peer, now)
                return []
            case events.SumsAwaited():
                self.awaited.add((event.rank, event.node))
                return self._confirm((event.rank, event.node))
            case events.SumsConfirmed():
                return self._stored(event, now)
            case events.WorkerForgotten():
                return self._forget(event.rank)
            case events.TreeCompleted():
                return self._close(event)
            case events.SquaresReceived():
                return [FindScale()] if self._answer(event.peer, event.step, now) else []
            case events.ScaleFound():
                return self._update(event.scale)
            case events.SliceUpdated():
                return self._complete() if self._answer(event.peer, event.step, now) else []
            case events.ShardGone():
                return self._gone(event)
            case events.TimePassed():
                return self._time_passed(now)
            case events.RunEnded():
                self.phase = GroupPhase.ENDED
                return [Send(peer=peer, message=Finished(reason=shortened(event.reason))) for peer in self.seats]
            case _:
                assert_never(event)

    def _hear(self, peer: bytes, now: float) -> ShardMember | None:
        seat = self.seats.get(peer)
        if seat is not None:
            seat.heard = now
        return seat

    # Shards come

    def _join(self, event: events.ShardJoined, now: float) -> list[GroupEffect]:
        if self._hear(event.peer, now) is not None:
            return []
        reason = self._refusal(event.join)
        if reason:
            refused = Send(peer=event.peer, message=Refused(reason=shortened(reason)))
            return [refused, ReportRefusal(text=f"refused a shard: {reason}")]
        taken = {seat.index for seat in self.seats.values()}
        index = next(index for index in range(1, self.facts.servers) if index not in taken)
        seat = self.seats[event.peer] = ShardMember(event.peer, index, event.join, heard=now)
        return [WelcomeShard(peer=event.peer, index=index), Report(text=f"{seat.named()} joined")]

    def _refusal(self, join: ShardJoin) -> str:
        """Return why a shard is turned away, empty where it is not."""
        facts = self.facts
        if self.phase is GroupPhase.ENDED:
            return "the run is over"
        if len(self.seats) == facts.servers - 1:
            return f"all {facts.servers} servers of this run are there: start the server with more --servers"
        return refusal(join, facts.fingerprint, allows_mixed_numerics=facts.allows_mixed_numerics)

    def _prepared(self, event: events.ShardPrepared, now: float) -> list[GroupEffect]:
        seat = self._hear(event.peer, now)
        if seat is None or seat.is_ready:
            return []
        if self.facts.needs_memory and not event.shares:
            del self.seats[event.peer]
            reason = f"it does not share the server's memory: {event.obstacle}"
            refused = Send(peer=event.peer, message=Refused(reason=shortened(reason), kind=RefusalKind.MEMORY))
            return [refused, Report(text=f"refused {seat.named()}: {reason}")]
        seat.is_ready, seat.shares, seat.obstacle = True, event.shares, event.obstacle
        effects: list[GroupEffect] = [FillShard(peer=seat.peer, index=seat.index, shares=seat.shares)]
        if seat.obstacle:
            effects.append(Report(text=f"{seat.named()} exchanges vectors over its socket: {seat.obstacle}"))
        return [*effects, *self._muster(), *self._remind(now)]

    def _muster(self) -> Sequence[GroupEffect]:
        seats = self.in_order()
        if sum(seat.is_ready for seat in seats) < self.facts.servers - 1:
            return []
        self.phase = GroupPhase.ADDING
        return [
            AnnounceGroup(
                addresses=tuple(seat.join.address for seat in seats),
                shares=all(seat.shares for seat in seats),
                obstacle=next((seat.obstacle for seat in seats if seat.obstacle), ""),
            )
        ]

    def in_order(self) -> list[ShardMember]:
        """Return the shards in the order of their slices."""
        return sorted(self.seats.values(), key=lambda seat: seat.index)

    # Sums are stored

    def _stored(self, event: events.SumsConfirmed, now: float) -> list[GroupEffect]:
        seat, stored = self._hear(event.peer, now), event.stored
        if seat is None or stored.step != self.step:
            return []
        key = (stored.rank, stored.node())
        self.stored.setdefault(key, set()).add(seat.index)
        return self._confirm(key)

    def _confirm(self, key: tuple[int, Node]) -> list[GroupEffect]:
        if key not in self.awaited or len(self.stored.get(key, ())) < self.facts.servers - 1:
            return []
        self.awaited.remove(key)
        return [ConfirmSums(rank=key[0], node=key[1])]

    def _forget(self, rank: int) -> list[GroupEffect]:
        for key in [key for key in (*self.stored, *self.awaited) if key[0] == rank]:
            self.stored.pop(key, None)
            self.awaited.discard(key)
        return []

    # Weights are updated

    def _close(self, event: events.TreeCompleted) -> list[GroupEffect]:
        self.tree = event
        if not event.is_clipped:
            return self._update(None)
        self.phase = GroupPhase.MEASURING
        asked = SquaresRequest(step=event.step, count=event.count)
        return [Send(peer=peer, message=asked) for peer in self.seats]

    def _update(self, scale: float | None) -> list[GroupEffect]:
        tree = self.tree
        assert tree is not None
        self.phase = GroupPhase.UPDATING
        self.answered.clear()
        update = Update(step=tree.step, count=tree.count, scale=scale, ranks=list(tree.ranks), collected=tree.collected)
        # First, so that all update at the same time.
        others: list[GroupEffect] = [Send(peer=peer, message=update) for peer in self.seats]
        return [*others, UpdateOwnSlice(step=tree.step, count=tree.count, scale=scale)]

    def _answer(self, peer: bytes, step: int, now: float) -> bool:
        """Book an answer to what was asked of all; return whether it is the last."""
        seat = self._hear(peer, now)
        if seat is None or self.tree is None or step != self.tree.step or seat.index in self.answered:
            return False
        self.answered.add(seat.index)
        return len(self.answered) == self.facts.servers - 1

    def _complete(self) -> list[GroupEffect]:
        assert self.tree is not None
        done, self.tree = self.tree.step, None
        self.phase, self.step = GroupPhase.ADDING, done + 1
        self.stored.clear()
        self.awaited.clear()
        self.answered.clear()
        return [CompleteStep(step=done)]

    # What goes wrong

    def _gone(self, event: events.ShardGone) -> list[GroupEffect]:
        if event.peer not in self.seats:
            return []
        seat = self.seats[event.peer]
        if self.phase is GroupPhase.MUSTERING:
            del self.seats[event.peer]
            return [Report(text=f"{seat.named()} left: {event.reason}")]
        return self._lose(seat, event.reason)

    def _lose(self, seat: ShardMember, reason: str) -> list[GroupEffect]:
        """End the run: the slice, and with it the optimizer's state, is nowhere else."""
        self.phase = GroupPhase.ENDED
        lost = f"{seat.named()} is gone, and its slice of the weights with it: {reason}"
        finished = Finished(reason=shortened(lost), kind=FailureKind.SERVER_LOST)
        others = [Send(peer=peer, message=finished) for peer in self.seats if peer != seat.peer]
        return [*others, LoseShard(text=lost)]

    def _time_passed(self, now: float) -> list[GroupEffect]:
        if now >= self.probe:
            self.probe = now + PROBE_S
            for seat in self.in_order():
                if now - seat.heard >= self.facts.silence_s and self.phase is not GroupPhase.MUSTERING:
                    return self._lose(seat, f"it has been silent for {now - seat.heard:.0f} s")
            probes: list[GroupEffect] = [Send(peer=peer, message=Ping()) for peer in self.seats]
            return [*probes, *self._remind(now)]
        return self._remind(now)

    def _remind(self, now: float) -> list[GroupEffect]:
        ready, needed = sum(seat.is_ready for seat in self.seats.values()), self.facts.servers - 1
        text = f"waiting for shards: {ready} of {needed} are ready"
        is_waiting = self.phase is GroupPhase.MUSTERING
        return [Report(text=text)] if self.reminder.is_due(now, is_waiting=is_waiting) else []

    def validate(self) -> None:
        """Raise AssertionError where the state contradicts itself: for tests, after each event."""
        indices = [seat.index for seat in self.seats.values()]
        assert len(set(indices)) == len(indices), "two shards have one slice"
        assert all(0 < index < self.facts.servers for index in indices)
        if self.phase not in (GroupPhase.MUSTERING, GroupPhase.ENDED):
            assert len(indices) == self.facts.servers - 1, "a slice is nobody's"
        assert (self.tree is not None) == (self.phase in (GroupPhase.MEASURING, GroupPhase.UPDATING)) or (
            self.phase is GroupPhase.ENDED
        )
