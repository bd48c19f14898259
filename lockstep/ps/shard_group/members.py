"""The shards of a run: which process has which slice, from its join to its loss. Pure.

The coordinator's own slice is the first, and has no member: a run of one server has no members, and waits for none.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from lockstep.common.aggregation.slices import most_servers
from lockstep.common.errors import CONTINUED, FailureKind, RefusalKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.optimizer import UpdatePolicy
from lockstep.common.protocol.messages import (
    NAME_LIMIT,
    Eviction,
    Finished,
    NotLeading,
    Ping,
    Refused,
    ShardStatus,
    StandbyAddress,
    shortened,
)
from lockstep.common.protocol.run_options import SERVERS_LIMIT
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
from lockstep.ps.coordinator.events import PartFailed, ServersAvailable, ServersReady
from lockstep.ps.coordinator.status import Reminder
from lockstep.ps.run.info import RunInfo

#: Seconds between two pings of a shard: sending to a process that is gone fails, and so is its death noticed.
PING_S = 1.0

#: Seconds of the server's silence after which a shard goes to a standby, at least: it is pinged once a second.
LEAST_TAKEOVER_S = 3.0 * PING_S

#: Seconds within which all shards join a run that is spread; otherwise it continues without them.
SPREAD_S = 10.0


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


MembersEffect = Send | FillShard | ServersReady | ServersAvailable | PartFailed | Report

_WAITING, _SERVING, _ENDED = GroupPhase

#: The phases that may follow each event.
TRANSITIONS = table_of(
    GroupPhase,
    {
        ShardJoin: stays(_WAITING, _ENDED) | {_SERVING: {_SERVING, _ENDED}},
        ShardReady: {_WAITING: {_WAITING, _SERVING}},
        PeerLeft: stays(_WAITING) | {_SERVING: {_SERVING, _ENDED}},
        TimePassed: {_WAITING: {_WAITING, _ENDED}, _SERVING: {_SERVING, _ENDED}},
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
    #: The standbys to which shards go if this server is gone.
    standbys: tuple[StandbyAddress, ...] = ()
    phase: GroupPhase = field(init=False)
    members: dict[bytes, ShardMember] = field(default_factory=dict)
    #: By connection, shards that wait for a slice: each is told of the end of the run.
    spares: dict[bytes, ShardJoin] = field(default_factory=dict)
    reminder: Reminder = field(default_factory=Reminder)
    #: When shards are pinged next.
    next_ping: float = 0.0
    #: When the run is continued without the shards that have not joined; None until it waits for them.
    patient_until: float | None = None
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
            case Finish(failure=reason, kind=kind):
                self.phase = GroupPhase.ENDED
                peers = (*self.members, *sorted(self.spares))
                if kind is FailureKind.SPREAD:
                    return [Send(peer=peer, message=Eviction(reason=shortened(reason))) for peer in peers]
                if kind in CONTINUED:
                    return []
                self.end = Finished(reason=shortened(reason))
                return [Send(peer=peer, message=self.end) for peer in peers]
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
            return self._spare(peer, join)
        self.spares.pop(peer, None)
        index = before.index if before is not None else self._free_index()
        member = self.members[peer] = ShardMember(peer, index, join, heard=now)
        again = "" if before is None else " again"
        return [Send(peer=peer, message=self.welcome(index)), Report(text=f"{member.named()} joined{again}")]

    def welcome(self, index: int) -> ShardWelcome:
        """Return the welcome of the shard with the slice of that index."""
        info, options = self.info, self.info.options
        return ShardWelcome(
            index=index,
            run=info.run,
            job=info.job,
            training_samples=info.training_samples,
            size=info.size,
            parameter_size=self.policy.parameter_size,
            spans=tuple(self.policy.spans),
            term=info.term,
            standbys=self.standbys,
            options=replace(options, takeover_seconds=max(options.takeover_seconds, LEAST_TAKEOVER_S)),
            source=info.source,
            model_files=tuple(info.model_files),
            model_folder=info.model_folder,
        )

    def _spare(self, peer: bytes, join: ShardJoin) -> list[MembersEffect]:
        """Let a shard wait for a slice."""
        self.spares[peer] = join
        text = f"all {self.info.options.servers} servers of this run are there: this shard waits until one is lost"
        if self.is_spread:
            text = "this shard waits until the weights are divided"
        return [Send(peer=peer, message=NotLeading(state="opening", reason=text)), *self._available()]

    @property
    def is_spread(self) -> bool:
        """Tell whether the weights may be divided among another number of servers."""
        return self.info.options.spread != "never"

    def _available(self) -> list[MembersEffect]:
        """Return how many servers there could be, if the run may have more."""
        if not self.is_spread:
            return []
        joins = [*(member.join for member in self.members.values()), *self.spares.values()]
        # It may not be known yet that the connection of one is gone that has joined again.
        places = {join.address for join in joins}
        if self.info.options.spread == "auto":
            # More servers on one machine would share its cores and its link.
            places = {join.machine for join in joins} - {self.info.machine}
        return [ServersAvailable(servers=min(1 + len(places), most_servers(self.info.size), SERVERS_LIMIT))]

    def _free_index(self) -> int:
        taken = {member.index for member in self.members.values()}
        return next(index for index in range(1, self.info.options.servers) if index not in taken)

    def _refusal(self, join: ShardJoin) -> Refused | None:
        """Return why a shard is refused, None if it is not."""
        info = self.info
        if not (self.others or self.is_spread):
            text = "this run has one server: start that with --servers 2 or more, or with --spread auto"
            return refused(RefusalKind.FULL, text)
        return refusal(join, info)

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
        if self.spares.pop(event.peer, None) is not None:
            return self._available()
        if event.peer not in self.members:
            return []
        member = self.members[event.peer]
        if self.phase is GroupPhase.WAITING:
            del self.members[event.peer]
            return [Report(text=f"{member.named()} left: {event.reason}")]
        return self._lose(member, event.reason)

    def _lose(self, member: ShardMember, reason: str) -> list[MembersEffect]:
        """End the run: the slice, and with it the optimizer's state, is nowhere else."""
        lost = f"{member.named()} is gone, and its slice of the weights with it: {reason}"
        return self._continue_without(lost, [peer for peer in self.members if peer != member.peer])

    def _continue_without(self, lost: str, peers: list[bytes]) -> list[MembersEffect]:
        """End this part of the run, to be continued with the shards that are left."""
        self.phase = GroupPhase.ENDED
        evicted = Eviction(reason=shortened(lost))
        return [
            *(Send(peer=peer, message=evicted) for peer in peers),
            PartFailed(text=lost, kind=FailureKind.SERVER_LOST),
        ]

    def _on_time_passed(self, now: float) -> list[MembersEffect]:
        if now < self.next_ping:
            return self._remind(now)
        self.next_ping = now + PING_S
        if self.is_spread and self.phase is GroupPhase.WAITING:
            self.patient_until = now + SPREAD_S if self.patient_until is None else self.patient_until
            if now >= self.patient_until:
                return self._continue_without(f"not all shards have joined within {SPREAD_S:g} s", [*self.members])
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
