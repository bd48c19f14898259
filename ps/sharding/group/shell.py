"""The server's end of its shards: a shell that carries out what the fleet wants, and gathers what they hold."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from common.aggregation.slices import Slice, slices_for
from common.aggregation.tree import Vector
from common.errors import RemoteProtocolError
from common.files.sanitize import one_line
from common.protocol.codec import encode
from common.protocol.messages import Eviction, Leave, Message, Ping, shortened
from common.protocol.shard_messages import (
    WEIGHTS,
    AddFromMemory,
    Admit,
    Begin,
    Collected,
    CollectedFrame,
    Forget,
    InitialFrame,
    SendWeightsTo,
    ShardJoin,
    ShardMessage,
    ShardReady,
    ShardWelcome,
    SliceMessage,
    Squares,
    SumsAck,
    UpdateDone,
    WorkerLost,
)
from common.transport.limits.rejection_log import RejectionLog
from common.transport.port import PeerGone, PeerSlow
from ps.coordinator import effects, events
from ps.coordinator.membership import Membership
from ps.run.info import RunInfo
from ps.run.traffic import Moved, Traffic
from ps.shard.partition import beginning_of, checksum_in, held_frames, own_part
from ps.shard.shard import Shard
from ps.sharding.group import effects as fleet_effects
from ps.sharding.group import events as fleet_events
from ps.sharding.group.distributed_update import CompletedUpdate, DistributedUpdate
from ps.sharding.group.gathered import GatheredWeights
from ps.sharding.group.group import ShardGroup
from ps.sharding.group.means import Means
from ps.sharding.group.member import GroupConfig, ShardMember

#: What one is told that says what only a shard says.
STRANGER = "its connection broke, or the server was started again, and its slice is lost"

#: Messages without arrays that may wait for a shard.
QUEUE = 1024


@dataclass
class ShardGroupShell:
    """All servers of a run but the coordinator, and the coordinator's own slice."""

    facts: RunInfo
    #: Of the whole vector, as the run begins; its memory may be the one that workers share.
    whole: Shard
    means: Means
    roster: Membership
    own: Shard = field(init=False)
    fleet: ShardGroup = field(init=False)
    gathered: GatheredWeights = field(init=False)
    slices: list[Slice] = field(init=False)
    #: The last update that all have made.
    stepped: CompletedUpdate | None = None
    #: The update that all make, or made last.
    _joint: DistributedUpdate = field(default_factory=DistributedUpdate)
    #: Shards that were not taken in.
    _refusals: RejectionLog = field(default_factory=RejectionLog)
    _traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        facts, whole = self.facts, self.whole
        self.slices = slices_for(whole.weights.size, facts.servers)
        self.own = own_part(whole, self.slices[0])
        self.gathered = GatheredWeights.of(whole)
        self.fleet = ShardGroup(
            GroupConfig(
                servers=facts.servers,
                fingerprint=facts.fingerprint,
                allows_mixed_numerics=facts.allows_mixed_numerics,
                needs_memory=facts.needs_memory,
                silence_s=facts.lease_timeout_s,
            ),
            step=whole.updates,
        )

    # What is heard

    def hears(self, peer: bytes, message: Message) -> bool:
        """Tell whether a message is for us: of a shard, of one that wants to be one, or that no longer is."""
        return isinstance(message, ShardJoin | SliceMessage) or peer in self.fleet.seats

    def hear(self, peer: bytes, message: Message, arrays: Sequence[Vector]) -> list[events.Event]:
        """Take in a message of a shard; return what it leads to."""
        if not isinstance(message, ShardMessage):
            raise RemoteProtocolError(f"a {type(message).__name__} is no message of a shard")
        if not isinstance(message, ShardJoin) and peer not in self.fleet.seats:
            return self._tell([peer], Eviction(reason=STRANGER))
        match message:
            case ShardJoin():
                return self.happen(fleet_events.ShardJoined(peer=peer, join=message))
            case ShardReady():
                return self.happen(self._prepared(peer, message))
            case SumsAck():
                return self.happen(fleet_events.SumsConfirmed(peer=peer, stored=message))
            case Squares():
                self._joint.measure(peer, self._trained(peer), arrays[0])
                return self.happen(fleet_events.SquaresReceived(peer=peer, step=message.step))
            case CollectedFrame():
                self.put(peer, message, arrays[0])
                return []
            case UpdateDone():
                self._joint.take(message)
                self._traffic.add(Moved(sums=message.sums_bytes, weights=message.weights_bytes))
                return self.happen(fleet_events.SliceUpdated(peer=peer, step=message.step))
            case WorkerLost():
                index = self.fleet.seats[peer].index
                member = self.roster.of_rank(message.rank)
                reason = f"shard {index} lost it: {one_line(message.reason)}"
                return [] if member is None else [events.WorkerLeft(peer=member.peer, reason=reason)]
            case Leave():
                return self.gone(peer, one_line(message.reason))
            case Ping():
                return self.happen(fleet_events.ShardHeard(peer=peer))
            case _:
                assert_never(message)

    def _prepared(self, peer: bytes, ready: ShardReady) -> fleet_events.GroupEvent:
        sharing = self.means.sharing
        if ready.nonce and (sharing is None or ready.nonce != sharing.folder.nonce.hex()):
            raise RemoteProtocolError(f"the nonce {ready.nonce!r} is not that of the shared memory")
        return fleet_events.ShardPrepared(peer=peer, shares=bool(ready.nonce), obstacle=one_line(ready.obstacle))

    def _trained(self, peer: bytes) -> int:
        """Return how many of the values in a shard's slice are trained."""
        owned = self.slices[self.fleet.seats[peer].index]
        return max(0, min(owned.stop, self.whole.policy.parameter_size) - owned.start)

    def put(self, peer: bytes, held: CollectedFrame, values: Vector) -> None:
        owned = self.slices[self.fleet.seats[peer].index]
        part = Slice(held.start, held.start + len(values))
        if not owned.start <= part.start < part.stop <= owned.stop:
            raise RemoteProtocolError(f"values {part.start} to {part.stop} of {held.name!r}: not of its slice")
        self.gathered.put(held.name, part, values)

    def gone(self, peer: bytes, reason: str) -> list[events.Event]:
        """Take in that a shard is gone."""
        return self.happen(fleet_events.ShardGone(peer=peer, reason=reason))

    # What is done

    def happen(self, event: fleet_events.GroupEvent) -> list[events.Event]:
        """Let the fleet handle an event, and whatever its effects lead to; return what the coordinator is to know."""
        pending, told = deque([event]), list[events.Event]()
        while pending:
            for effect in self.fleet.handle(pending.popleft(), self.means.clock.now()):
                for following in self._perform(effect):
                    if isinstance(following, fleet_events.GroupEvent):
                        pending.append(following)
                    else:
                        told.append(following)
        return told

    def _perform(self, effect: fleet_effects.GroupEffect) -> Iterator[fleet_events.GroupEvent | events.Event]:
        match effect:
            case fleet_effects.Send():
                yield from self._send(effect.peer, effect.message)
            case fleet_effects.WelcomeShard():
                yield from self._send(effect.peer, self._welcome(effect.index))
            case fleet_effects.FillShard():
                yield from self._fill(effect)
            case fleet_effects.AnnounceGroup():
                yield events.ServersReady(addresses=effect.addresses, shares=effect.shares, obstacle=effect.obstacle)
            case fleet_effects.ConfirmSums():
                yield events.SumsAcknowledged(rank=effect.rank, node=effect.node)
            case fleet_effects.FindScale():
                assert self.fleet.tree is not None  # that is what is measured
                order = [seat.peer for seat in self.fleet.in_order()]
                yield fleet_events.ScaleFound(scale=self._joint.scale(self.own, self.fleet.tree.count, order))
            case fleet_effects.UpdateOwnSlice():
                rate = self.own.update(effect.step, effect.count, effect.scale)
                self._joint.take_own(rate, checksum_in(self.own, effect.step, self.whole.weights.size))
            case fleet_effects.CompleteStep():
                self._complete(effect.step)
                yield events.StepUpdated(step=effect.step)
            case fleet_effects.LoseShard():
                yield events.ServerLost(text=effect.text)
            case fleet_effects.Report():
                self.means.say(effect.text)
            case fleet_effects.ReportRefusal():
                self._refusals.note(effect.text)
                for text in self._refusals.told(self.means.clock.now()):
                    self.means.say(text)
            case _:
                assert_never(effect)

    def _send(self, peer: bytes, message: Message, *arrays: Vector) -> Iterator[fleet_events.GroupEvent]:
        try:
            self.means.port.send(peer, encode(message, arrays))
        except PeerGone:
            yield fleet_events.ShardGone(peer=peer, reason="its connection is gone")
        except PeerSlow:
            yield fleet_events.ShardGone(peer=peer, reason="it does not read what it is sent")

    def _send_all(self, message: Message) -> list[events.Event]:
        """Send a message to each shard."""
        return self._tell(list(self.fleet.seats), message)

    def _tell(self, peers: Sequence[bytes], message: Message) -> list[events.Event]:
        gone = [event for peer in peers for event in self._send(peer, message)]
        return [told for event in gone for told in self.happen(event)]

    def _welcome(self, index: int) -> ShardWelcome:
        training, test = self.means.samples
        return ShardWelcome(
            index=index,
            servers=self.facts.servers,
            run=self.facts.run,
            job=self.facts.job,
            training_samples=training,
            test_samples=test,
            size=self.whole.weights.size,
            parameter_size=self.whole.policy.parameter_size,
            memory=self.facts.memory,
        )

    def _fill(self, effect: fleet_effects.FillShard) -> Iterator[fleet_events.GroupEvent]:
        has_weights = effect.shares and self.whole.policy.wire_weights.is_exact
        pieces = list(beginning_of(self.whole, self.slices[effect.index], has_weights=has_weights))
        self.means.port.allow(QUEUE + len(pieces))
        for name, part, values in pieces:
            yield from self._send(effect.peer, InitialFrame(name=name, start=part.start), values)
        yield from self._send(effect.peer, Begin(steps=self.whole.updates))

    # Workers come and go, and bring sums

    def admit(self, peer: bytes, *, shares: bool) -> list[events.Event]:
        """Tell all that a worker takes part."""
        member = self.roster.members.get(peer)
        if member is None:
            return []
        return self._send_all(Admit(rank=member.rank, incarnation=member.join.incarnation, shares=shares))

    def forget(self, rank: int) -> list[events.Event]:
        """Tell all that a worker is gone."""
        return self.happen(fleet_events.WorkerForgotten(rank=rank)) + self._send_all(Forget(rank=rank))

    def serve(self, rank: int, step: int) -> list[events.Event]:
        """Let all send a worker their weights of a step, unless they have been told before."""
        return [] if rank in self._joint.pushed else self._send_all(SendWeightsTo(rank=rank, step=step))

    def add_shared(self, effect: effects.AddSharedSums) -> list[events.Event]:
        """Let all add the sums in a worker's slot."""
        node, step = effect.node, self.fleet.step
        return self._send_all(AddFromMemory(rank=effect.rank, slot=effect.slot, step=step, lo=node.lo, hi=node.hi))

    def await_sums(self, effect: effects.AwaitShards) -> list[events.Event]:
        """Return that all have the sums of a result, if they have already."""
        return self.happen(fleet_events.SumsAwaited(rank=effect.rank, node=effect.node))

    # Updates

    def update(self, step: int, count: int, collected: Collected) -> list[events.Event]:
        """Let all make an update, and send their new weights to the workers that are ready."""
        pushed = frozenset(member.rank for member in self.roster.ready() if not member.shares)
        self._joint = DistributedUpdate(began=self.means.clock.now(), collected=collected, pushed=pushed)
        if collected != "nothing":
            self.gathered.begin()
        return self.happen(
            fleet_events.TreeCompleted(
                step=step,
                count=count,
                is_clipped=self.own.policy.clip_norm is not None,
                ranks=tuple(sorted(pushed)),
                collected=collected,
            )
        )

    def _complete(self, step: int) -> None:
        self.stepped = self._joint.stepped(step, self._traffic.take(), self.means.clock.now())
        if self._joint.collected != "nothing":
            self.gather_near(step + 1, has_state=self._joint.collected == "all")
            if not self.gathered.end(step + 1):
                raise RemoteProtocolError("not all shards have sent their slices")

    def gather_near(self, updates: int, *, has_state: bool) -> None:
        """Gather what is in our own memory: our slice, and the weights of those that share it."""
        for name, part, values in held_frames(self.own, updates, has_weights=True, has_state=has_state):
            self.gathered.put(name, part, values)
        for seat in self.fleet.seats.values():
            if self.sees(seat):
                owned = self.slices[seat.index]
                self.gathered.put(WEIGHTS, owned, owned.of(self.whole.slots[updates % 2]))

    def sees(self, seat: ShardMember) -> bool:
        """Tell whether a shard's weights stand in our memory: what workers share may be a rounded copy of them."""
        return seat.shares and self.whole.policy.wire_weights.is_exact

    # The end

    def end(self, reason: str) -> None:
        """Tell all that the run is over."""
        self.happen(fleet_events.RunEnded(reason=shortened(reason)))
