"""A shard's process decides what to add and what to send. No socket, clock, file or array.

What the server sends are events as they are; what workers send is `Received`. How the shard joins and leaves a run is
the client's part.
"""

from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from lockstep.common.aggregation.slices import slices_for
from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import RefusalKind
from lockstep.common.protocol.messages import Ping, Refused, SumsFrame, shortened
from lockstep.common.protocol.shard_messages import (
    AddFromMemory,
    Admit,
    Begin,
    Collect,
    Forget,
    Hello,
    InitialFrame,
    SendWeightsTo,
    ShardWelcome,
    SquaresRequest,
    SumsAck,
    Update,
    WorkerLost,
)
from lockstep.common.statemachine.client import (
    Client,
    ClientConfig,
    ClientEffect,
    ClientEvent,
    ClientPhase,
    Prepared,
    ProtocolBroken,
    SendToServer,
)
from lockstep.common.statemachine.machine import IGNORED, Machine, PeerLeft, Received, Send, stays, table_of
from lockstep.ps.received_frames import ReceivedFrames
from lockstep.ps.shard_process.worker_connections import WorkerConnection, WorkerConnections

#: Seconds after which a server that went silent counts as gone: it pings every second.
SILENCE_S = 60.0


class ShardPhase(Enum):
    """The phases of a shard."""

    #: It is not in a run, or not any more.
    OUTSIDE = "outside"
    #: The state that it begins with is on its way.
    FILLING = "filling"
    #: It adds sums, updates its slice, and sends weights.
    SERVING = "serving"


# Events

#: What the server sends a shard that is in the run; the shell carries out some of it itself.
Request = (
    InitialFrame | Begin | Admit | Forget | SendWeightsTo | AddFromMemory | SquaresRequest | Update | Collect | Ping
)
#: `WorkerLost` is here that the sums of a worker that shares memory cannot be mapped.
SliceEvent = Request | Received | WorkerLost | PeerLeft
ShardEvent = SliceEvent | ClientEvent

#: What does not come from the server.
FROM_WORKERS = Received | PeerLeft

# Effects


class SendSlice(Struct, frozen=True, kw_only=True):
    """Send the weights of the slice that are in use to a worker."""

    peer: bytes


class AddFrame(Struct, frozen=True, kw_only=True):
    """Add the array that came with the event just handled to the tree of a frame."""

    frame: int
    node: Node


#: Messages of the server's are effects as they are. With `Admit`, a worker's sums are mapped until `Forget`. Those in
#: memory are added, and not used any more. The squares are sent. The update is made, and what the server collects of it
#: is sent.
SliceEffect = SendSlice | AddFrame | AddFromMemory | Admit | Forget | SquaresRequest | Update | Send
ShardEffect = SliceEffect | ClientEffect

_OUTSIDE, _FILLING, _SERVING = ShardPhase

#: What may follow.
TRANSITIONS = table_of(
    ShardPhase,
    {
        InitialFrame: stays(_FILLING, _SERVING),
        Begin: {_FILLING: {_SERVING}},
        Admit: stays(_SERVING),
        Forget: stays(_SERVING),
        # A worker dials as soon as it is welcome, perhaps before the server has admitted it here.
        Hello: stays(_FILLING, _SERVING),
        SendWeightsTo: stays(_SERVING),
        SumsFrame: stays(_SERVING),
        AddFromMemory: stays(_SERVING),
        WorkerLost: stays(_SERVING),
        SquaresRequest: {_SERVING: {_SERVING, _OUTSIDE}},
        Update: {_SERVING: {_SERVING, _OUTSIDE}},
        Collect: stays(_FILLING, _SERVING),
        PeerLeft: stays(_FILLING, _SERVING),
        Ping: stays(_FILLING, _SERVING),
    },
    otherwise=IGNORED,
)


@dataclass
class ShardState(Machine[ShardEvent, ShardEffect]):
    """The state of a shard's process."""

    transitions = TRANSITIONS
    config: ClientConfig
    client: Client = field(init=False)
    phase: ShardPhase = ShardPhase.OUTSIDE
    #: What the server wrote of the slice, None before.
    welcome: ShardWelcome | None = None
    #: Updates made: only sums of this step are accepted.
    step: int = 0
    #: The index of the frame that begins there.
    frame_at: dict[int, int] = field(default_factory=dict)
    workers: WorkerConnections = field(init=False)

    def __post_init__(self) -> None:
        self.client = Client(self.config, role="shard", may_rejoin=True)
        self.workers = WorkerConnections(0, ReceivedFrames(0))

    def handle(self, event: ShardEvent, now: float) -> list[ShardEffect]:
        if not isinstance(event, SliceEvent):
            return [*self._as_client(event, now)]
        if not isinstance(event, FROM_WORKERS) and self.transitions[self.phase, type(event)]:
            self.client.on_message(now)
        return self.obey(event, now)

    def deadline(self) -> float | None:
        return self.client.deadline()

    def _as_client(self, event: ClientEvent, now: float) -> list[ClientEffect]:
        effects = self.client.handle(event, now)
        if self.client.phase is not ClientPhase.JOINED:
            self.phase = ShardPhase.OUTSIDE
        if isinstance(event, ShardWelcome):
            self.welcome = event
        elif isinstance(event, Prepared) and self.welcome is not None:
            # Not before: what is welcome may turn out to be no slice.
            welcome, self.phase = self.welcome, ShardPhase.FILLING
            frames = slices_for(welcome.size, welcome.options.servers)[welcome.index].frames()
            self.frame_at = {frame.start: index for index, frame in enumerate(frames)}
            self.workers = WorkerConnections(welcome.job.micro_batches, ReceivedFrames(len(frames)))
        return effects

    def react(self, event: ShardEvent, now: float) -> list[ShardEffect]:
        workers = self.workers
        match event:
            case Begin(steps=steps):
                self.phase, self.step = ShardPhase.SERVING, steps
                return []
            case InitialFrame() | Collect():
                return []  # the shell has carried it out
            case Ping():
                return [SendToServer(message=Ping())]
            case Admit():
                workers.admit(event)
                return [event] if event.shares else []
            case Forget(rank=rank):
                workers.remove(rank)
                return [event]
            case Received(peer=peer, message=Hello() as hello):
                return self._weights(workers.identify(peer, hello))
            case Received(peer=peer, message=SumsFrame() as sums):
                return self._add(peer, sums)
            case SendWeightsTo(rank=rank):
                worker = workers.by_rank.get(rank)
                if worker is not None:
                    worker.wanted_step = event.step
                return self._weights(worker)
            case AddFromMemory(rank=rank):
                worker = workers.by_rank.get(rank)
                if event.step != self.step or worker is None or not worker.admit.shares:
                    return []
                ack = SumsAck(rank=rank, step=event.step, lo=event.lo, hi=event.hi)
                return [event, SendToServer(message=ack)]
            case WorkerLost(rank=rank):
                workers.remove(rank)
                return [SendToServer(message=event)]
            case SquaresRequest(step=step):
                return [event] if step == self.step else self._fail_at(step, now)
            case Update(step=step):
                return self._update(event) if step == self.step else self._fail_at(step, now)
            case PeerLeft():
                return self._remove_peer(event)
            case _:
                raise AssertionError(event)  # those of the client never come here

    def _weights(self, worker: WorkerConnection | None) -> list[ShardEffect]:
        """Return what sends a worker the weights, if it waits for those at hand and can be reached."""
        if worker is None or not self.workers.is_due(worker, self.step):
            return []
        assert worker.peer is not None  # otherwise nothing is due
        return [SendSlice(peer=worker.peer)]

    def _add(self, peer: bytes, sums: SumsFrame) -> list[ShardEffect]:
        rank, node, frame = self.workers.rank_of(peer), sums.node(), self.frame_at[sums.start]
        if rank is None or not self.workers.accept(peer, sums, frame, self.step):
            return []
        effects: list[ShardEffect] = [AddFrame(frame=frame, node=node)]
        if self.workers.book.is_whole(peer, sums.step, node):
            effects.append(SendToServer(message=SumsAck(rank=rank, step=sums.step, lo=sums.lo, hi=sums.hi)))
        return effects

    def _update(self, update: Update) -> list[ShardEffect]:
        self.step += 1
        effects: list[ShardEffect] = [update]
        for rank in update.ranks:
            worker = self.workers.by_rank.get(rank)
            if worker is not None:
                worker.wanted_step = self.step
                effects += self._weights(worker)
        return effects

    def _fail_at(self, step: int, now: float) -> list[ShardEffect]:
        """End, since the server is at another step."""
        fault = f"the server is at step {step}, this shard at {self.step}: expected the same"
        return [*self._as_client(ProtocolBroken(fault=fault), now)]

    def _remove_peer(self, event: PeerLeft) -> list[ShardEffect]:
        rank = self.workers.rank_of(event.peer)
        self.workers.remove_peer(event.peer)
        refused = Refused(reason=shortened(event.reason), kind=RefusalKind.FAILED)
        effects: list[ShardEffect] = [Send(peer=event.peer, message=refused)]
        if rank is not None:
            self.workers.remove(rank)
            lost = WorkerLost(rank=rank, reason=shortened(event.reason))
            effects += [Forget(rank=rank), SendToServer(message=lost)]
        return effects

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        self.workers.validate()
