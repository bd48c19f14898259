"""All slices of a run's weights, as the coordinator's process sees them.

A command is a call of the service of its own slice, and a message to each shard. A result counts once all shards have
its sums, a step is updated once all slices are, and the weights are gathered from all servers.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import assert_never

from lockstep.common.aggregation.checksum import MODULUS
from lockstep.common.aggregation.slices import FRAME, Slice, slices_for
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.codec import decode
from lockstep.common.protocol.messages import Eviction, Lease, Leave, Message, Ping
from lockstep.common.protocol.shard_messages import (
    Admit,
    Begin,
    Collect,
    Collected,
    Forget,
    Hello,
    SendWeightsTo,
    ShardJoin,
    ShardMessage,
    ShardReady,
    SliceFrame,
    SliceMessage,
    Squares,
    SquaresRequest,
    SumsAck,
    Update,
    UpdateDone,
    WorkerLost,
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.machine import (
    PeerLeft,
    Received,
    Report,
    Send,
    TimePassed,
    carry_out,
)
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.coordinator.events import (
    Event,
    PartFailed,
    ServersReady,
    StepUpdated,
    SumsAcknowledged,
)
from lockstep.ps.coordinator.membership import Member, Membership
from lockstep.ps.run.info import RunInfo
from lockstep.ps.shard.partition import checksum_in, initial_frames
from lockstep.ps.shard.service import SliceService
from lockstep.ps.shard.shard import Shard, WeightsAfter
from lockstep.ps.shard_group.distributed_update import DistributedUpdate, GatheredWeights, UpdatePhase
from lockstep.ps.shard_group.members import (
    FillShard,
    GroupPhase,
    MembersEffect,
    MembersEvent,
    ShardMember,
    ShardMembers,
)

#: The reason to evict a peer that is not a shard of this run, and sends what only a shard does.
STRANGER = "its connection broke, or the server was started again, and its slice is lost"

#: Messages without arrays that may wait for a shard.
QUEUE = 1024

#: Seconds in which the shards of a run that fails are to bring their weights.
FINAL_WEIGHTS_S = 1.0


@dataclass
class SliceGroup:
    """All slices of a run's weights."""

    info: RunInfo
    #: The whole vector as the run begins. Its memory may be the one that workers share.
    whole: Shard
    #: The coordinator's own slice.
    own: SliceService
    membership: Membership
    _: KW_ONLY
    clock: Clock
    report: Callable[[Report], None]
    shards: ShardMembers = field(init=False)
    #: The slices of all servers.
    slices: list[Slice] = field(init=False)
    #: The weights of all servers, None if there is one server.
    gathered: GatheredWeights | None = None
    #: The update that the servers make, or made last.
    update: DistributedUpdate = field(init=False)
    #: By worker and node, the shards that have the sums of the current step.
    confirmed: dict[tuple[int, Node], set[int]] = field(default_factory=dict)
    #: Events that the coordinator is to handle, until `_dispatch` returns them.
    _happened: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        whole = self.whole
        self.shards = ShardMembers(self.info, whole.policy)
        self.slices = slices_for(whole.weights.size, self.info.options.servers)
        self.update = DistributedUpdate(step=whole.updates - 1, others=self.shards.others, phase=UpdatePhase.DONE)
        if self.shards.others:
            self.gathered = GatheredWeights.of(whole)

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do although no message comes."""
        return self.shards.deadline()

    def most_waiting(self) -> int:
        """Return how many messages may have to wait for a shard: its slice, and commands; 0 if no shards exist."""
        if not self.shards.others:
            return 0
        vectors = 1 + len(self.whole.state)
        momenta = -(-len(self.whole.policy.momenta) // FRAME)
        return QUEUE + momenta + vectors * max(len(owned.frames()) for owned in self.slices[1:])

    @property
    def updates(self) -> int:
        """The number of updates that all servers have made."""
        return self.update.step + (self.update.phase is UpdatePhase.DONE)

    # Messages of shards

    def has(self, peer: bytes) -> bool:
        """Tell whether a shard is behind a connection."""
        return peer in self.shards.members or peer in self.shards.spares

    def handles(self, peer: bytes, message: Message) -> bool:
        """Tell whether a message is for the group: of a shard, of one that wants to be one, or that no longer is."""
        return isinstance(message, ShardJoin | ShardReady | SliceMessage) or self.has(peer)

    def on_message(self, peer: bytes, message: Message, arrays: Sequence[Vector]) -> Sequence[Event]:
        """Handle a message of a shard; return what it means to the coordinator."""
        if not isinstance(message, ShardMessage):
            raise RemoteProtocolError(f"a {type(message).__name__} is not a message of a shard")
        self.shards.heard(peer, self.clock.now())
        member = self.shards.members.get(peer)
        if isinstance(message, ShardJoin):
            return self._dispatch(Received(peer=peer, message=message))
        if member is None:
            return self._send_to([peer], Eviction(reason=STRANGER))
        match message:
            case Leave():
                return self.on_left(peer, one_line(message.reason))
            case ShardReady():
                return self._on_ready(member, message)
            case Ping():
                return []
            case _:
                # Without a slice, it answers a server that was lost at this address before.
                is_expected = member.is_ready and self.shards.phase is not GroupPhase.ENDED
                return self._on_answer(member, message, arrays) if is_expected else []

    def _on_ready(self, member: ShardMember, ready: ShardReady) -> list[Event]:
        if (ready.index, ready.part) != (member.index, self.info.part):
            # It answers a welcome before the last one, as it asked twice: that place is gone.
            happened = self.on_left(member.peer, "it is ready for another place")
            return [*self._send_to([member.peer], Eviction(reason=STRANGER)), *happened]
        return self._dispatch(Received(peer=member.peer, message=ready))

    def _on_answer(self, member: ShardMember, answer: SliceMessage, arrays: Sequence[Vector]) -> Sequence[Event]:
        """Handle what a shard sends that has its slice."""
        match answer:
            case SumsAck():
                return self._on_ack(member, answer)
            case Squares():
                trained = self.slices[member.index].until(self.whole.policy.parameter_size)
                is_last = self.update.on_squares(member.index, answer.step, len(trained), arrays[0])
                return self._make_update() if is_last else []
            case SliceFrame():
                if self.gathered is not None:
                    self.gathered.put_sent(answer, arrays[0], self.slices[member.index])
                return []
            case UpdateDone():
                self.update.on_done(member.index, answer)
                return self._complete()
            case WorkerLost():
                worker = self.membership.by_rank(answer.rank)
                reason = f"shard {member.index} lost it: {one_line(answer.reason)}"
                return [] if worker is None else [PeerLeft(peer=worker.peer, reason=reason)]
            case _:
                assert_never(answer)

    def _on_ack(self, member: ShardMember, ack: SumsAck) -> list[Event]:
        if ack.step != self.updates or self.update.phase is not UpdatePhase.DONE:
            return []
        sums = [(rank, Node(lo, hi)) for rank, lo, hi in ack.sums]
        for each in sums:
            self.confirmed.setdefault(each, set()).add(member.index)
        everywhere = [each for each in sums if len(self.confirmed[each]) == self.shards.others]
        return [SumsAcknowledged(rank=rank, node=node) for rank, node in everywhere]

    def on_left(self, peer: bytes, reason: str) -> list[Event]:
        """Handle that a shard is gone."""
        return self._dispatch(PeerLeft(peer=peer, reason=reason))

    def on_time(self, now: float) -> list[Event]:
        """Handle the passing of time."""
        due = self.shards.deadline()
        return self._dispatch(TimePassed()) if due is not None and now >= due else []

    def _dispatch(self, *events: MembersEvent) -> list[Event]:
        """Let the members handle events, and whatever their effects lead to; return what the coordinator handles."""
        carry_out(self.shards, events, self._perform, self.clock.now)
        happened, self._happened = self._happened, []
        return happened

    def _perform(self, effect: MembersEffect) -> Iterable[PeerLeft]:
        match effect:
            case Send():
                return self.own.outbox.send(effect.peer, effect.message)
            case FillShard():
                return self._fill(effect)
            case ServersReady() | PartFailed():
                self._happened.append(effect)
            case Report():
                self.report(effect)
            case _:
                assert_never(effect)
        return []

    def _fill(self, effect: FillShard) -> Sequence[PeerLeft]:
        outbox, steps = self.own.outbox, self.whole.updates
        for name, part, values in initial_frames(self.whole, self.slices[effect.index]):
            if failed := outbox.send(effect.peer, SliceFrame(name=name, steps=steps, start=part.start), values):
                return failed
        return outbox.send(effect.peer, Begin(steps=steps))

    def _send_to(self, peers: Iterable[bytes], message: Message) -> list[Event]:
        gone = [event for peer in peers for event in self.own.outbox.send(peer, message)]
        return [following for event in gone for following in self._dispatch(event)]

    def send_all(self, message: Message) -> list[Event]:
        """Send a message to each shard."""
        return self._send_to(list(self.shards.members), message)

    # Workers come and go, and bring sums

    def admit(self, member: Member, *, shares: bool) -> Sequence[Event]:
        """Let a worker take part."""
        rank, incarnation = member.rank, member.join.incarnation
        admit = Admit(rank=rank, incarnation=incarnation)
        self.own.admit(admit, shares=shares)
        return [*self.own.identify(member.peer, Hello(rank=rank, incarnation=incarnation)), *self.send_all(admit)]

    def forget(self, rank: int) -> list[Event]:
        """Let a worker take part no more."""
        self.own.forget(rank)
        return self.send_all(Forget(rank=rank))

    def send_lease(self, rank: int, lease: Lease) -> Sequence[Event]:
        """Send a lease to a worker, with all weights of its step if it lacks them.

        The update's message may have told the shards to send theirs.
        """
        lacks_weights = self.own.lacks_weights(rank, lease.step)
        if failed := self.own.send_lease(rank, lease):
            return failed
        is_told = rank in self.update.pushed or not lacks_weights
        return [] if is_told else self.send_all(SendWeightsTo(rank=rank, step=lease.step))

    # Updates

    def begin_update(self, step: int, divisor: float, collected: Collected) -> list[Event]:
        """Let all servers make an update, and the shards send their new weights to the workers that are ready."""
        if self.shards.phase is GroupPhase.ENDED:
            return []
        assert self.update.phase is UpdatePhase.DONE, "an update is under way"
        others = self.shards.others
        pushed = frozenset(member.rank for member in self.membership.ready() if others)
        self.update = DistributedUpdate(
            step=step, others=others, divisor=divisor, began=self.clock.now(), collected=collected, pushed=pushed
        )
        if self.gathered is not None and collected != "nothing":
            self.gathered.begin()
        if not others or self.own.shard.policy.clip_norm is None:
            return self._make_update()
        return self.send_all(SquaresRequest(step=step, divisor=divisor))

    def _make_update(self) -> list[Event]:
        update, own = self.update, self.own.shard
        update.phase = UpdatePhase.UPDATING
        scale = update.scale(own)
        asked = Update(
            step=update.step,
            divisor=update.divisor,
            scale=scale,
            ranks=sorted(update.pushed),
            collected=update.collected,
        )
        # The others first, so that all update at the same time.
        happened = self.send_all(asked)
        update.rate = own.update(update.step, update.divisor, scale).rate
        return [*happened, *self._complete()]

    def _complete(self) -> list[Event]:
        """End the update if all slices have their new weights."""
        update = self.update
        if update.phase is not UpdatePhase.UPDATING or not update.is_made(self.own.shard):
            return []
        update.phase, update.seconds = UpdatePhase.DONE, self.clock.now() - update.began
        self.confirmed.clear()
        if self.gathered is not None and update.collected != "nothing":
            self.gathered.put_held(self.own.shard, update.step + 1, has_state=update.collected == "all")
            if not self.gathered.end(update.step + 1):
                raise RemoteProtocolError("not all shards have sent their slices")
        return [StepUpdated(step=update.step)]

    def checksum(self, done: DistributedUpdate) -> int:
        """Return the checksum of the weights in all slices after an update that was just made."""
        return (done.checksum + checksum_in(self.own.shard, done.step)) % MODULUS

    # Weights are gathered

    @property
    def holder(self) -> Shard | GatheredWeights:
        """The whole vector, as it was last in one place."""
        return self.gathered or self.own.shard

    # The run ends

    def final_weights(self, *, is_diverged: bool) -> WeightsAfter:
        """Return the weights of a run that fails: after the last complete update, or before it if that diverged.

        Shards may not answer any more: if not all of them do in time, these are the weights that were gathered last.
        Other messages that arrive meanwhile are dropped.
        """
        gathered, own = self.gathered, self.own.shard
        if gathered is None:
            return own.kept_weights(is_diverged=is_diverged)
        updates = max(0, self.updates - is_diverged)
        if updates == gathered.updates:
            return gathered.weights, updates
        gathered.begin()
        gathered.put_held(own, updates, has_state=False)
        if not any(self.own.outbox.send(peer, Collect(steps=updates)) for peer in self.shards.members):
            self._receive_weights(gathered, updates)
        gathered.end(updates)
        return gathered.weights, gathered.updates

    def _receive_weights(self, gathered: GatheredWeights, updates: int) -> None:
        """Gather what the shards send, until all of that is here, or it is late."""
        port, deadline = self.own.outbox.port, self.clock.now() + FINAL_WEIGHTS_S
        while not gathered.is_whole() and self.clock.now() < deadline:
            received = port.receive(deadline - self.clock.now())
            if received is None:
                if not port.lost():
                    return
                continue
            peer, frames = received
            with suppress(RemoteProtocolError):
                message, arrays = decode(frames, ShardMessage)
                member = self.shards.members.get(peer)
                if member is not None and isinstance(message, SliceFrame) and message.steps == updates:
                    gathered.put_sent(message, arrays[0], self.slices[member.index])

    def end(self, finish: Finish) -> None:
        """Inform all shards that the run is over."""
        self._dispatch(finish)

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        self.shards.validate()
        self.own.validate()
