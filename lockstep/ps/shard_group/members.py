"""The shards of a run: which process has which slice, from its join to its loss. Pure.

The coordinator's own slice is the first, and has no member: a run of one server has no members, and waits for none.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from msgspec import Struct

from lockstep.common.errors import FailureKind, RefusalKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.optimizer import UpdatePolicy
from lockstep.common.protocol.messages import (
    NAME_LIMIT,
    Eviction,
    Finished,
    Ping,
    Refused,
    ShardStatus,
    Spare,
    shortened,
)
from lockstep.common.protocol.shard_messages import ShardJoin, ShardReady, ShardWelcome
from lockstep.common.statemachine.machine import (
    IGNORED,
    Machine,
    PeerLeft,
    Received,
    Report,
    ReportKind,
    Send,
    TimePassed,
    leads,
    soonest,
    stays,
    table_of,
)
from lockstep.ps.coordinator.admission import refusal, refused
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.coordinator.events import PartFailed, ServersReady
from lockstep.ps.coordinator.status import Reminder
from lockstep.ps.run.info import RunInfo

#: Seconds between two pings of a shard: sending to a process that is gone fails, and so is its death noticed.
PING_S = 1.0


class GroupPhase(Enum):
    """The phases of the shards of a run."""

    #: Not all shards are ready.
    WAITING = "waiting for servers"
    #: Each slice has its server.
    SERVING = "serving"
    #: The run is over, or a shard is lost.
    ENDED = "ended"


#: Of messages, those of a shard that joins. `Finish` is the coordinator's effect as it is.
MembersEvent = Received | PeerLeft | TimePassed | Finish


class FillShard(Struct, frozen=True, kw_only=True):
    """Send a shard the vectors that its slice begins with."""

    peer: bytes
    index: int


MembersEffect = Send | FillShard | ServersReady | PartFailed | Report

_WAITING, _SERVING, _ENDED = GroupPhase

#: The phases that may follow each event.
TRANSITIONS = table_of(
    GroupPhase,
    {
        ShardJoin: stays(_WAITING, _ENDED) | {_SERVING: {_SERVING, _ENDED}},
        ShardReady: {_WAITING: {_WAITING, _SERVING}},
        PeerLeft: stays(_WAITING) | {_SERVING: {_SERVING, _ENDED}},
        TimePassed: stays(_WAITING) | {_SERVING: {_SERVING, _ENDED}},
        Finish: leads({_ENDED}, _WAITING, _SERVING),
    },
    otherwise=IGNORED,
)


@dataclass
class ShardMember:
    """One shard of the group."""

    peer: bytes
    #: Of its slice, from 1 on.
    index: int
    join: ShardJoin
    #: When its last message came.
    heard: float
    is_ready: bool = False

    def named(self) -> str:
        """Return its name in messages to people."""
        return f"shard {self.index} (host {self.join.host}, pid {self.join.pid})"


@dataclass
class ShardMembers(Machine[MembersEvent, MembersEffect]):
    """The shards of a run."""

    transitions = TRANSITIONS
    info: RunInfo
    policy: UpdatePolicy
    phase: GroupPhase = field(init=False)
    members: dict[bytes, ShardMember] = field(default_factory=dict)
    #: The connections of shards that wait for a slice: each is told of the end of the run.
    spares: set[bytes] = field(default_factory=set)
    reminder: Reminder = field(default_factory=Reminder)
    #: When shards are pinged next.
    next_ping: float = 0.0
    #: The message about the end of the run, None before it, or if the run is continued.
    end: Finished | None = None

    def __post_init__(self) -> None:
        self.phase = GroupPhase.WAITING if self.others else GroupPhase.SERVING

    @property
    def others(self) -> int:
        """The number of servers besides the coordinator's."""
        return self.info.options.servers - 1

    def handle(self, event: MembersEvent, now: float) -> list[MembersEffect]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        if self.phase is GroupPhase.ENDED or not self.others:
            return None
        return soonest(self.next_ping, self.reminder.due)

    def react(self, event: MembersEvent, now: float) -> list[MembersEffect]:
        match event:
            case Received(peer=peer, message=ShardJoin() as join):
                return self._join(peer, join, now)
            case Received(peer=peer):
                return self._prepared(peer, now)
            case PeerLeft():
                return self._on_left(event)
            case TimePassed():
                return self._on_time_passed(now)
            case Finish():
                self.phase, self.end = GroupPhase.ENDED, event.farewell()
                peers = (*self.members, *sorted(self.spares))
                return [] if self.end is None else [Send(peer=peer, message=self.end) for peer in peers]
            case _:
                assert_never(event)

    def heard(self, peer: bytes, now: float) -> None:
        """Record that a message of a shard came."""
        if peer in self.members:
            self.members[peer].heard = now

    # Shards join

    def _join(self, peer: bytes, join: ShardJoin, now: float) -> list[MembersEffect]:
        if peer in self.members:
            return []
        if self.phase is GroupPhase.ENDED:
            # It is treated as a late worker is: a person or a script restarted it, and it has done nothing wrong.
            return [] if self.end is None else [Send(peer=peer, message=self.end)]
        before = next((one for one in self.members.values() if one.join.address == join.address), None)
        if before is not None and self.phase is GroupPhase.SERVING:
            # Its slice is gone. It asks again, and gets its place when the run is resumed.
            return self._lose(before, "it has joined again")
        if (why := self._refusal(join)) is not None:
            return [
                Send(peer=peer, message=why),
                Report(text=f"refused a shard: {why.reason}", kind=ReportKind.REFUSAL),
            ]
        if before is not None:
            # Only its new connection counts, whether or not the old one is known to be broken.
            del self.members[before.peer]
        elif len(self.members) == self.others:
            # One of those that are expected may turn out to be gone, as if it takes the place of one that was killed.
            return self._spare(peer)
        self.spares.discard(peer)
        index = before.index if before is not None else self._free_index()
        member = self.members[peer] = ShardMember(peer, index, join, heard=now)
        again = "" if before is None else " again"
        return [Send(peer=peer, message=self.welcome(index)), Report(text=f"{member.named()} joined{again}")]

    def welcome(self, index: int) -> ShardWelcome:
        """Return the welcome of the shard with the slice of that index."""
        info = self.info
        return ShardWelcome(
            index=index,
            run=info.run,
            job=info.job,
            training_samples=info.training_samples,
            size=info.size,
            parameter_size=self.policy.parameter_size,
            spans=tuple(self.policy.spans),
            part=info.part,
            options=info.options,
            source=info.source,
            model_files=tuple(info.model_files),
            model_folder=info.model_folder,
        )

    def _spare(self, peer: bytes) -> list[MembersEffect]:
        """Let a shard wait for a slice."""
        self.spares.add(peer)
        text = f"all {self.info.options.servers} servers of this run are there: this shard waits until one is lost"
        return [Send(peer=peer, message=Spare(reason=text))]

    def _free_index(self) -> int:
        taken = {member.index for member in self.members.values()}
        return next(index for index in range(1, self.info.options.servers) if index not in taken)

    def _refusal(self, join: ShardJoin) -> Refused | None:
        """Return why a shard is refused, None if it is not."""
        if not self.others:
            return refused(RefusalKind.FULL, "this run has one server: start that with --servers 2 or more")
        return refusal(join, self.info)

    def _prepared(self, peer: bytes, now: float) -> list[MembersEffect]:
        member = self.members.get(peer)
        if member is None or member.is_ready:
            return []
        member.is_ready = True
        return [FillShard(peer=peer, index=member.index), *self._announce(), *self._remind(now)]

    def _announce(self) -> list[MembersEffect]:
        members = self.in_order()
        if sum(member.is_ready for member in members) < self.others:
            return []
        self.phase = GroupPhase.SERVING
        places = ((one_line(one.join.host, NAME_LIMIT), one.join.address) for one in members)
        return [ServersReady(shards=tuple(ShardStatus(host=host, address=address) for host, address in places))]

    def in_order(self) -> list[ShardMember]:
        """Return the shards in the order of their slices."""
        return sorted(self.members.values(), key=lambda member: member.index)

    # Shards fail

    def _on_left(self, event: PeerLeft) -> list[MembersEffect]:
        self.spares.discard(event.peer)
        if event.peer not in self.members:
            return []
        member = self.members[event.peer]
        if self.phase is GroupPhase.WAITING:
            del self.members[event.peer]
            return [Report(text=f"{member.named()} left: {event.reason}")]
        return self._lose(member, event.reason)

    def _lose(self, member: ShardMember, reason: str) -> list[MembersEffect]:
        """End this part of the run: the slice, and with it the optimizer's state, is nowhere else."""
        lost = f"{member.named()} is gone, and its slice of the weights with it: {reason}"
        self.phase = GroupPhase.ENDED
        evicted = Eviction(reason=shortened(lost))
        return [
            *(Send(peer=peer, message=evicted) for peer in self.members if peer != member.peer),
            PartFailed(text=lost, kind=FailureKind.SERVER_LOST),
        ]

    def _on_time_passed(self, now: float) -> list[MembersEffect]:
        if now < self.next_ping:
            return self._remind(now)
        self.next_ping = now + PING_S
        for member in self.in_order():
            if now - member.heard >= self.info.options.lease_timeout and self.phase is GroupPhase.SERVING:
                return self._lose(member, f"it has been silent for {now - member.heard:.0f} s")
        return [*(Send(peer=peer, message=Ping()) for peer in self.members), *self._remind(now)]

    def _remind(self, now: float) -> list[MembersEffect]:
        ready = sum(member.is_ready for member in self.members.values())
        text = f"waiting for shards: {ready} of {self.others} are ready"
        is_waiting = self.phase is GroupPhase.WAITING
        return [Report(text=text, kind=ReportKind.REMINDER)] if self.reminder.is_due(now, is_waiting=is_waiting) else []

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        indices = [member.index for member in self.members.values()]
        assert len(set(indices)) == len(indices), "two shards have one slice"
        assert all(0 < index < self.info.options.servers for index in indices)
        if self.phase is GroupPhase.SERVING:
            assert len(indices) == self.others, "a slice has no server"
