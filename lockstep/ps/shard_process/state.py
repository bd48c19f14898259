"""A shard's process decides what to add and what to send. No socket, clock, file or array.

`handle(event, now)` returns what is to be done; `deadline()` says when `TimePassed` is due. How it joins and leaves a
run is the client's part.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from lockstep.common.aggregation.slices import slices_for
from lockstep.common.client.client import Client, ClientConfig, ClientPhase
from lockstep.common.client.events_and_effects import (
    ClientEffect,
    ClientEvent,
    Prepared,
    ProtocolBroken,
    SendToServer,
    Welcomed,
)
from lockstep.common.errors import RefusalKind
from lockstep.common.protocol.messages import Ping, Refused, shortened
from lockstep.common.protocol.shard_messages import ShardWelcome, SumsAck, Update, WorkerLost
from lockstep.common.statemachine.transitions import IGNORED, TransitionTable, check_reached, table_of, targets_in
from lockstep.ps.shard.received_frames import ReceivedFrames
from lockstep.ps.shard_process import events
from lockstep.ps.shard_process.effects import (
    AddFrame,
    AddSharedSlice,
    MapSums,
    RefusePeer,
    SendSlice,
    SendSquares,
    ShardEffect,
    UnmapSums,
    UpdateSlice,
)
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


_OUTSIDE, _FILLING = frozenset({ShardPhase.OUTSIDE}), frozenset({ShardPhase.FILLING})
_SERVING = frozenset({ShardPhase.SERVING})

#: For each event, what may follow in the phases OUTSIDE, FILLING, SERVING.
TRANSITIONS: TransitionTable[ShardPhase, events.SliceEvent] = table_of(
    ShardPhase,
    {
        events.SliceFilled: (IGNORED, _SERVING, IGNORED),
        events.WorkerAdmitted: (IGNORED, IGNORED, _SERVING),
        events.WorkerForgotten: (IGNORED, IGNORED, _SERVING),
        # A worker dials as soon as it is welcome, perhaps before the server has admitted it here.
        events.WorkerConnected: (IGNORED, _FILLING, _SERVING),
        events.WeightsRequested: (IGNORED, IGNORED, _SERVING),
        events.SumsReceived: (IGNORED, IGNORED, _SERVING),
        events.SumsShared: (IGNORED, IGNORED, _SERVING),
        events.SumsMissing: (IGNORED, IGNORED, _SERVING),
        events.SquaresRequested: (IGNORED, IGNORED, _SERVING | _OUTSIDE),
        events.UpdateRequested: (IGNORED, IGNORED, _SERVING | _OUTSIDE),
        events.PeerFailed: (IGNORED, _FILLING, _SERVING),
        events.PingReceived: (IGNORED, _FILLING, _SERVING),
        events.ServerHeard: (IGNORED, _FILLING, _SERVING),
    },
)


@dataclass
class ShardState:
    """The state of a shard's process; see `TRANSITIONS` for the table that it obeys."""

    config: ClientConfig
    client: Client = field(init=False)
    phase: ShardPhase = ShardPhase.OUTSIDE
    #: What the server wrote of the slice, None before.
    welcome: ShardWelcome | None = None
    #: Updates made: only sums of this step are accepted.
    step: int = 0
    workers: WorkerConnections = field(init=False)

    def __post_init__(self) -> None:
        self.client = Client(self.config, role="shard", may_rejoin=False)
        self.workers = WorkerConnections(0, ReceivedFrames(0))

    def handle(self, event: events.ShardEvent, now: float) -> list[ShardEffect]:
        """Handle what happened at `now` seconds; return what is to be done, in order."""
        if not isinstance(event, events.SliceEvent):
            return [*self._as_client(event, now)]
        targets = targets_in(TRANSITIONS, self.phase, event)
        if not targets:
            return []
        if not isinstance(event, events.FROM_WORKERS):
            self.client.on_message(now)
        effects = self._react(event, now)
        check_reached(targets, event, self.phase)
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due, None in phases that wait for nothing."""
        return self.client.deadline()

    def _as_client(self, event: ClientEvent, now: float) -> list[ClientEffect]:
        effects = self.client.handle(event, now)
        if self.client.phase is not ClientPhase.JOINED:
            self.phase = ShardPhase.OUTSIDE
        if isinstance(event, Welcomed) and isinstance(event.welcome, ShardWelcome):
            self.welcome = event.welcome
        elif isinstance(event, Prepared) and self.welcome is not None:
            # Not before: what is welcome may turn out to be no slice.
            welcome, self.phase = self.welcome, ShardPhase.FILLING
            frames = slices_for(welcome.size, welcome.servers)[welcome.index].frames()
            self.workers = WorkerConnections(welcome.job.micro_batches, ReceivedFrames(len(frames)))
        return effects

    def _react(self, event: events.SliceEvent, now: float) -> list[ShardEffect]:
        workers = self.workers
        match event:
            case events.SliceFilled():
                self.phase, self.step = ShardPhase.SERVING, event.steps
                return []
            case events.PingReceived():
                return [SendToServer(message=Ping())]
            case events.ServerHeard():
                return []
            case events.WorkerAdmitted(admit=admit):
                workers.admit(admit)
                return [MapSums(rank=admit.rank)] if admit.shares else []
            case events.WorkerForgotten(rank=rank):
                workers.remove(rank)
                return [UnmapSums(rank=rank)]
            case events.WorkerConnected():
                return self._weights(workers.identify(event.peer, event.hello))
            case events.WeightsRequested(request=request):
                worker = workers.by_rank.get(request.rank)
                if worker is not None:
                    worker.wanted_step = request.step
                return self._weights(worker)
            case events.SumsReceived():
                return self._add(event)
            case events.SumsShared(add=add):
                worker = workers.by_rank.get(add.rank)
                if add.step != self.step or worker is None or not worker.admit.shares:
                    return []
                ack = SumsAck(rank=add.rank, step=add.step, lo=add.lo, hi=add.hi)
                return [AddSharedSlice(node=add.node(), rank=add.rank, slot=add.slot), SendToServer(message=ack)]
            case events.SumsMissing():
                workers.remove(event.rank)
                return [SendToServer(message=WorkerLost(rank=event.rank, reason=shortened(event.reason)))]
            case events.SquaresRequested(request=squares):
                if squares.step != self.step:
                    return self._fail_at(squares.step, now)
                return [SendSquares(step=squares.step, count=squares.count)]
            case events.UpdateRequested(update=update):
                return self._update(update) if update.step == self.step else self._fail_at(update.step, now)
            case events.PeerFailed():
                return self._remove_peer(event)
            case _:
                assert_never(event)

    def _weights(self, worker: WorkerConnection | None) -> list[ShardEffect]:
        """Return what sends a worker the weights, if it waits for those at hand and can be reached."""
        if worker is None or not self.workers.is_due(worker, self.step):
            return []
        assert worker.peer is not None  # otherwise nothing is due
        return [SendSlice(peer=worker.peer)]

    def _add(self, event: events.SumsReceived) -> list[ShardEffect]:
        sums, node, rank = event.sums, event.sums.node(), self.workers.rank_of(event.peer)
        if rank is None or not self.workers.accept(event.peer, sums, event.frame, self.step):
            return []
        effects: list[ShardEffect] = [AddFrame(frame=event.frame, node=node)]
        if self.workers.book.is_whole(event.peer, sums.step, node):
            effects.append(SendToServer(message=SumsAck(rank=rank, step=sums.step, lo=sums.lo, hi=sums.hi)))
        return effects

    def _update(self, update: Update) -> list[ShardEffect]:
        self.step += 1
        effects: list[ShardEffect] = [UpdateSlice(update=update)]
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

    def _remove_peer(self, event: events.PeerFailed) -> list[ShardEffect]:
        rank = self.workers.rank_of(event.peer)
        self.workers.remove_peer(event.peer)
        refused = Refused(reason=shortened(event.reason), kind=RefusalKind.FAILED)
        effects: list[ShardEffect] = [RefusePeer(peer=event.peer, refused=refused)]
        if rank is not None:
            self.workers.remove(rank)
            lost = WorkerLost(rank=rank, reason=shortened(event.reason))
            effects += [UnmapSums(rank=rank), SendToServer(message=lost)]
        return effects

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        self.workers.validate()
