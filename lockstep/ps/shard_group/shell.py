"""All servers of a run, as the server sees them: carries out the effects of `ShardGroup`, and gathers the weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, assert_never

import msgspec

from lockstep.common.aggregation.checksum import MODULUS
from lockstep.common.aggregation.slices import FRAME, Slice, slices_for
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.own_code import needs_code
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Eviction, Leave, Message, StandbyAddress
from lockstep.common.protocol.shard_messages import (
    WEIGHTS,
    AddFromMemory,
    Admit,
    Begin,
    Collect,
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
    Update,
    UpdateDone,
    WorkerLost,
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.delivery import deliver
from lockstep.common.statemachine.machine import (
    PeerLeft,
    Received,
    Report,
    ReportRefusal,
    Send,
    TimePassed,
    carry_out,
)
from lockstep.common.transport.port import ServerPort
from lockstep.ps.coordinator import effects as coordinator_effects
from lockstep.ps.coordinator import events as coordinator_events
from lockstep.ps.coordinator.membership import Membership
from lockstep.ps.run.info import RunInfo
from lockstep.ps.shard.partition import checksum_in, held_frames, initial_frames, own_part
from lockstep.ps.shard.shard import Shard, WeightsAfter
from lockstep.ps.shard_group import group as machine
from lockstep.ps.shard_group.distributed_update import DistributedUpdate, GatheredWeights
from lockstep.ps.shard_group.group import ShardGroup, ShardMember
from lockstep.ps.shared_memory.memory import ServerSharedMemory

#: The reason to evict a peer that is not a shard of this run, and sends what only a shard does.
STRANGER = "its connection broke, or the server was started again, and its slice is lost"

#: Seconds of the server's silence after which a shard goes to a standby, at least: it is pinged once a second.
LEAST_TAKEOVER_S = 3.0 * machine.PING_S

#: Messages without arrays that may wait for a shard.
QUEUE = 1024

#: Seconds in which the shards of a run that fails are to bring their weights.
FINAL_WEIGHTS_S = 1.0


@dataclass
class ShardGroupShell:
    """All servers of a run: the coordinator's own slice, and the shards that have the others, if there are any."""

    info: RunInfo
    #: Of the whole vector, as the run begins; its memory may be the one that workers share.
    whole: Shard
    #: Samples of the dataset, to train and to test.
    samples: tuple[int, int]
    membership: Membership
    _: KW_ONLY
    port: ServerPort
    clock: Clock
    report: Callable[[Report], None]
    report_refusal: Callable[[str], None]
    #: The memory that workers and shards on this machine share, if there is any.
    sharing: ServerSharedMemory | None = None
    #: Where shards go if this server is gone.
    standbys: tuple[StandbyAddress, ...] = ()
    own: Shard = field(init=False)
    state: ShardGroup = field(init=False)
    slices: list[Slice] = field(init=False)
    #: The weights of all servers, None if all of them are ours.
    gathered: GatheredWeights | None = None
    #: The update that all have made, until it is recorded.
    completed: DistributedUpdate | None = None
    #: The update that all make, or made last.
    _update: DistributedUpdate = field(default_factory=DistributedUpdate)
    #: What the coordinator is to handle, until `_dispatch` returns it.
    _happened: list[coordinator_events.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        info, whole = self.info, self.whole
        self.slices, self.own = slices_for(whole.weights.size, info.options.servers), whole
        if info.options.servers > 1:
            self.own, self.gathered = own_part(whole, self.slices[0]), GatheredWeights.of(whole)
        self.state = ShardGroup(info, step=whole.updates)

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do although no message comes."""
        return self.state.deadline()

    @property
    def holder(self) -> Shard | GatheredWeights:
        """Who has the whole vector, as it was last in one place."""
        return self.gathered or self.own

    # Messages become events

    def handles(self, peer: bytes, message: Message) -> bool:
        """Tell whether a message is for the group: of a shard, of one that wants to be one, or that no longer is."""
        return isinstance(message, ShardJoin | SliceMessage) or peer in self.state.members

    def on_message(self, peer: bytes, message: Message, arrays: Sequence[Vector]) -> Sequence[coordinator_events.Event]:
        """Handle a message of a shard; return what it means to the coordinator."""
        if not isinstance(message, ShardMessage):
            raise RemoteProtocolError(f"a {type(message).__name__} is not a message of a shard")
        if not isinstance(message, ShardJoin) and peer not in self.state.members:
            return self._send_to([peer], Eviction(reason=STRANGER))
        if isinstance(message, SliceMessage) and not (isinstance(message, ShardReady) or self._is_ready(peer)):
            # It has no slice yet: a server before, which was lost at this address, has asked for this.
            return []
        match message:
            case CollectedFrame():
                self._gather(peer, message, arrays[0])
                return []
            case WorkerLost():
                return self._worker_lost(peer, message)
            case Leave():
                return self.on_shard_gone(peer, one_line(message.reason))
            case ShardReady(nonce=nonce):
                if nonce and self.sharing is None:
                    raise RemoteProtocolError("it shares memory that it was not offered")
                if self._is_for_another_place(peer, message):
                    # It answers a welcome before the last one, as it asked twice: that place or its memory is gone.
                    happened = self.on_shard_gone(peer, "it is ready for another place")
                    return [*self._send_to([peer], Eviction(reason=STRANGER)), *happened]
            case Squares():
                self._update.on_squares(peer, self._trained(peer), arrays[0])
            case UpdateDone():
                self._update.on_done(message)
        return self._dispatch(Received(peer=peer, message=message))

    def _is_ready(self, peer: bytes) -> bool:
        return peer in self.state.members and self.state.members[peer].is_ready

    def _is_for_another_place(self, peer: bytes, ready: ShardReady) -> bool:
        """Tell whether a shard has made room for the slice of another welcome, or in the memory of that time."""
        place = self.state.members[peer].index, self.info.term
        if ready.index is not None and (ready.index, ready.term) != place:
            return True
        return bool(ready.nonce) and self.sharing is not None and ready.nonce != self.sharing.folder.nonce.hex()

    def _trained(self, peer: bytes) -> int:
        """Return how many of the values in a shard's slice are trained."""
        owned = self.slices[self.state.members[peer].index]
        return max(0, min(owned.stop, self.whole.policy.parameter_size) - owned.start)

    def _worker_lost(self, peer: bytes, lost: WorkerLost) -> list[coordinator_events.Event]:
        member = self.membership.by_rank(lost.rank)
        if member is None:
            return []
        reason = f"shard {self.state.members[peer].index} lost it: {one_line(lost.reason)}"
        return [PeerLeft(peer=member.peer, reason=reason)]

    def on_shard_gone(self, peer: bytes, reason: str) -> list[coordinator_events.Event]:
        """Handle that a shard is gone."""
        return self._dispatch(PeerLeft(peer=peer, reason=reason))

    def on_time(self, now: float) -> list[coordinator_events.Event]:
        """Handle the passing of time."""
        due = self.state.deadline()
        return self._dispatch(TimePassed()) if due is not None and now >= due else []

    # Events become effects, and effects are carried out

    def _dispatch(self, *events: machine.GroupEvent) -> list[coordinator_events.Event]:
        """Let the group handle events, and whatever its effects lead to; return what the coordinator is to handle."""
        carry_out(self.state, events, self._perform, self.clock.now)
        happened, self._happened = self._happened, []
        return happened

    def _perform(self, effect: machine.GroupEffect) -> Iterator[machine.GroupEvent]:
        match effect:
            case Send():
                yield from self._send(effect.peer, effect.message)
            case machine.WelcomeShard():
                yield from self._send(effect.peer, self._welcome(effect.index))
            case machine.FillShard():
                yield from self._fill(effect)
            case machine.FindScale():
                assert self.state.update is not None  # that is what is measured
                order = [member.peer for member in self.state.in_order()]
                yield machine.ScaleFound(scale=self._update.scale(self.own, self.state.update.divisor, order))
            case Update():
                self._update.rate = self.own.update(effect.step, effect.divisor, effect.scale).rate
                yield machine.OwnSliceUpdated(step=effect.step)
            case coordinator_events.StepUpdated():
                self._complete(effect.step)
                self._happened.append(effect)
            case (
                coordinator_events.ServersReady()
                | coordinator_events.SumsAcknowledged()
                | coordinator_events.ServerLost()
            ):
                self._happened.append(effect)
            case Report():
                self.report(effect)
            case ReportRefusal():
                self.report_refusal(effect.text)
            case _:
                assert_never(effect)

    def _send(self, peer: bytes, message: Message, *arrays: Vector) -> list[PeerLeft]:
        return deliver(self.port, peer, encode(message, arrays))

    def _send_to(self, peers: Sequence[bytes], message: Message) -> list[coordinator_events.Event]:
        gone = [event for peer in peers for event in self._send(peer, message)]
        return [following for event in gone for following in self._dispatch(event)]

    def send_all(self, message: Message) -> list[coordinator_events.Event]:
        """Send a message to each shard."""
        return self._send_to(list(self.state.members), message)

    def _welcome(self, index: int) -> ShardWelcome:
        (training, test), options = self.samples, self.info.options
        return ShardWelcome(
            index=index,
            run=self.info.run,
            job=self.info.job,
            training_samples=training,
            test_samples=test,
            size=self.whole.weights.size,
            parameter_size=self.whole.policy.parameter_size,
            memory=self.info.memory,
            spans=tuple((span.stop, *span.group) for span in self.whole.policy.spans),
            term=self.info.term,
            standbys=self.standbys,
            options=msgspec.structs.replace(options, takeover_seconds=max(options.takeover_seconds, LEAST_TAKEOVER_S)),
            **(self._own_source() if needs_code(self.info.job) else {}),
        )

    def _own_source(self) -> dict[str, Any]:
        """Return what a shard needs that calls functions of the user's own."""
        info = self.info
        return {"source": info.source, "model_files": tuple(info.model_files), "model_folder": info.model_folder}

    def most_waiting(self) -> int:
        """Return how many messages may have to wait for a shard, 0 if there is none: all of its slice, and commands."""
        if not self.slices[1:]:
            return 0
        vectors = 1 + len(self.whole.state)
        momenta = -(-len(self.whole.policy.momenta) // FRAME)
        return QUEUE + momenta + vectors * max(len(owned.frames()) for owned in self.slices[1:])

    def _fill(self, effect: machine.FillShard) -> Iterator[machine.GroupEvent]:
        has_weights = effect.shares and self.whole.policy.wire_weights.is_exact
        owned = self.slices[effect.index]
        for name, part, values in initial_frames(self.whole, owned, has_weights=has_weights):
            yield from self._send(effect.peer, InitialFrame(name=name, start=part.start), values)
        yield from self._send(effect.peer, Begin(steps=self.whole.updates))

    # Workers come and go, and bring sums

    def admit(self, peer: bytes, *, shares: bool) -> list[coordinator_events.Event]:
        """Inform all shards that a worker takes part."""
        member = self.membership.members.get(peer)
        if member is None:
            return []
        return self.send_all(Admit(rank=member.rank, incarnation=member.join.incarnation, shares=shares))

    def forget(self, effect: coordinator_effects.ForgetWorker) -> list[coordinator_events.Event]:
        """Inform all shards that a worker is gone."""
        return self.send_all(Forget(rank=effect.rank))

    def send_weights(self, rank: int, step: int) -> Sequence[coordinator_events.Event]:
        """Let all shards send a worker their weights of a step, unless the update's message has told them to."""
        return [] if rank in self._update.pushed else self.send_all(SendWeightsTo(rank=rank, step=step))

    def add_shared(self, effect: coordinator_effects.AddSharedSums) -> Sequence[coordinator_events.Event]:
        """Let all shards add the sums in a worker's slot."""
        node, step = effect.node, self.state.step
        return self.send_all(AddFromMemory(rank=effect.rank, slot=effect.slot, step=step, lo=node.lo, hi=node.hi))

    # Updates

    def update(self, step: int, divisor: float, collected: Collected) -> list[coordinator_events.Event]:
        """Let all servers make an update, and the shards send their new weights to the workers that are ready."""
        pushed = frozenset(member.rank for member in self.membership.ready() if not member.shares and self.state.others)
        self._update = DistributedUpdate(began=self.clock.now(), collected=collected, pushed=pushed)
        if self.gathered is not None and collected != "nothing":
            self.gathered.begin()
        asked = Update(step=step, divisor=divisor, scale=None, ranks=sorted(pushed), collected=collected)
        return self._dispatch(asked)

    def _complete(self, step: int) -> None:
        self._update.step, self._update.seconds = step, self.clock.now() - self._update.began
        self.completed = self._update
        if self.gathered is not None and self._update.collected != "nothing":
            self._gather_near(self.gathered, step + 1, has_state=self._update.collected == "all")
            if not self.gathered.end(step + 1):
                raise RemoteProtocolError("not all shards have sent their slices")

    def checksum(self, done: DistributedUpdate) -> int:
        """Return the checksum of the weights in all slices after an update that was just made."""
        return (done.checksum + checksum_in(self.own, done.step, self.whole.weights.size)) % MODULUS

    # Weights are gathered

    def _gather(self, peer: bytes, frame: CollectedFrame, values: Vector) -> None:
        """Gather what a shard has sent of its slice."""
        owned = self.slices[self.state.members[peer].index]
        part = Slice(frame.start, frame.start + len(values))
        if not owned.start <= part.start < part.stop <= owned.stop:
            raise RemoteProtocolError(f"values {part.start} to {part.stop} of {frame.name!r}: not of its slice")
        assert self.gathered is not None  # there are shards
        self.gathered.put(frame.name, part, values)

    def _gather_near(self, gathered: GatheredWeights, updates: int, *, has_state: bool) -> None:
        """Gather what is in our own memory: our slice, and the weights of those that share it."""
        for name, part, values in held_frames(self.own, updates, has_weights=True, has_state=has_state):
            gathered.put(name, part, values)
        for member in self.state.members.values():
            if self._sees(member):
                owned = self.slices[member.index]
                gathered.put(WEIGHTS, owned, owned.of(self.whole.slots[updates % 2]))

    def _sees(self, member: ShardMember) -> bool:
        """Tell whether a shard's weights are in our memory: what workers share may be a rounded copy of them."""
        return member.shares and self.whole.policy.wire_weights.is_exact

    # The run ends

    def final_weights(self, *, is_diverged: bool) -> WeightsAfter:
        """Return the weights of a run that fails: after the last complete update, or before it if that diverged.

        Shards may not answer any more: if not all of them do in time, these are the weights that were gathered last.
        What else arrives meanwhile is dropped.
        """
        gathered = self.gathered
        if gathered is None:
            return self.own.previous_weights() if is_diverged else self.own.current_weights()
        updates = max(0, self.state.step - is_diverged)
        if updates == gathered.updates:
            return gathered.weights, updates
        before = gathered.weights.copy()
        gathered.begin()
        self._gather_near(gathered, updates, has_state=False)
        if self._request_weights(updates):
            self._receive_weights(gathered, updates)
        if not gathered.end(updates):
            gathered.weights[:] = before
        return gathered.weights, gathered.updates

    def _request_weights(self, updates: int) -> bool:
        """Request the weights that we do not see; return whether all shards can be reached."""
        hidden = [member.peer for member in self.state.members.values() if not self._sees(member)]
        return not any(self._send(peer, Collect(steps=updates)) for peer in hidden)

    def _receive_weights(self, gathered: GatheredWeights, updates: int) -> None:
        deadline = self.clock.now() + FINAL_WEIGHTS_S
        while not gathered.is_whole() and self.clock.now() < deadline:
            received = self.port.receive(deadline - self.clock.now())
            if received is None:
                if not self.port.lost():
                    return
                continue
            peer, frames = received
            with suppress(RemoteProtocolError):
                message, arrays = decode(frames, ShardMessage)
                if peer in self.state.members and isinstance(message, CollectedFrame) and message.steps == updates:
                    self._gather(peer, message, arrays[0])

    def end(self, finish: coordinator_effects.Finish) -> None:
        """Inform all shards that the run is over."""
        self._dispatch(finish)
