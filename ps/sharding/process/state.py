"""A shard's process decides what to take in and what to send. No socket, clock, file or array.

`handle(event, now)` returns what is to be done; `deadline()` says when `TimePassed` is due.
"""

from dataclasses import dataclass
from typing import assert_never

from common.errors import RefusalKind
from common.protocol.messages import Leave, Ping, Refused, shortened
from common.protocol.shard_messages import ShardJoin, ShardReady, SumsAck, Update, WorkerLost
from common.statemachine.transitions import check_reached, targets_in
from ps.shard.frame_book import FrameBook
from ps.sharding.process import events
from ps.sharding.process.effects import (
    AddFrame,
    AddSharedSlice,
    DropSums,
    Exit,
    MapSums,
    Prepare,
    RefusePeer,
    Report,
    SendSquares,
    SendWeights,
    ShardEffect,
    Tell,
    UpdateSlice,
)
from ps.sharding.process.transitions import TRANSITIONS, ShardPhase
from ps.sharding.process.worker_connections import WorkerConnection, WorkerConnections

#: Seconds between two words on a server that has not answered yet.
RETRY_S = 5.0

#: Every so many of these the join is sent again, lest the first went down with a server that died.
JOINS_EVERY = 12


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What a shard is told at its start."""

    #: The server's.
    address: str
    join: ShardJoin
    #: Seconds to wait for a server that is not there, None for ever.
    timeout_s: float | None = None
    #: Seconds after which a server that went silent counts as gone.
    silence_s: float = 60.0


@dataclass
class ShardState:
    """Where a shard's process stands; see `ps.sharding.process.transitions` for the table that it obeys."""

    facts: ShardConfig
    phase: ShardPhase = ShardPhase.JOINING
    started: float = 0.0
    #: When the server last said anything, or was last called.
    heard: float = 0.0
    asked: float = 0.0
    retries: int = 0
    #: Updates made: sums are taken of this step only.
    step: int = 0
    visitors: WorkerConnections | None = None

    def handle(self, event: events.ShardEvent, now: float) -> list[ShardEffect]:
        """Take in what happened at `now` seconds; return what is to be done, in order."""
        targets = targets_in(TRANSITIONS, self.phase, event)
        if not targets:
            return []
        if not isinstance(
            event, events.TimePassed | events.WorkerGreeted | events.SumsFrameReceived | events.PeerFailed
        ):
            self.heard = self.asked = now
        effects = self._react(event, now)
        check_reached(targets, event, self.phase)
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due, None where the phase reads no messages."""
        match self.phase:
            case ShardPhase.JOINING:
                retry, timeout = self.asked + RETRY_S, self.facts.timeout_s
                return retry if timeout is None else min(retry, self.started + timeout)
            case ShardPhase.FILLING | ShardPhase.SERVING:
                return self.heard + self.facts.silence_s
            case ShardPhase.PREPARING | ShardPhase.ENDED:
                return None

    def _react(self, event: events.ShardEvent, now: float) -> list[ShardEffect]:
        match event:
            case events.Started():
                self.started = now
                return [Tell(message=self.facts.join)]
            case events.Welcomed(welcome=welcome):
                self.phase = ShardPhase.PREPARING
                text = f"joined run {welcome.run} as shard {welcome.index} of {welcome.servers} servers"
                return [Report(text=text), Prepare(welcome=welcome)]
            case events.JoinRefused():
                return self._end(2, f"the server refused this shard: {event.refused.reason}")
            case events.Evicted():
                return self._end(1, f"the server let this shard go: {event.fenced.reason}")
            case events.Prepared():
                self.phase = ShardPhase.FILLING
                self.visitors = WorkerConnections(event.micro_batches, FrameBook(event.frames))
                return [Tell(message=ShardReady(nonce=event.nonce, obstacle=shortened(event.obstacle)))]
            case events.PreparationFailed():
                return [Tell(message=Leave(reason=shortened(event.reason))), *self._end(2, event.reason)]
            case events.Begun():
                self.phase, self.step = ShardPhase.SERVING, event.steps
                return []
            case events.ServerAsked():
                return [Tell(message=Ping())]
            case events.ServerHeard():
                return []
            case events.RunFinished():
                reason = event.finished.reason
                return self._end(1, f"the run failed: {reason}") if reason else self._end(0, "")
            case events.ProtocolBroken():
                return self._break(event.fault)
            case events.Interrupted():
                return [Tell(message=Leave(reason="interrupted")), *self._end(130, "interrupted")]
            case events.TimePassed():
                return self._join_again(event, now) if self.phase is ShardPhase.JOINING else self._miss(now)
            case _:
                # Before the welcome nobody was told where we are.
                return [] if self.visitors is None else self._serve(event, self.visitors)

    def _end(self, code: int, reason: str) -> list[ShardEffect]:
        self.phase = ShardPhase.ENDED
        return [Exit(code=code, reason=reason)]

    def _break(self, fault: str) -> list[ShardEffect]:
        """End, since the server said what it must not."""
        told = f"the server broke the protocol: {fault}"
        return [Tell(message=Leave(reason=shortened(told))), *self._end(1, told)]

    def _join_again(self, event: events.TimePassed, now: float) -> list[ShardEffect]:
        if event.is_hopeless:
            return self._end(2, event.obstacle)
        timeout = self.facts.timeout_s
        if timeout is not None and now >= self.started + timeout:
            why = event.obstacle or "is it running there?"
            return self._end(1, f"no server answered at {self.facts.address} within {timeout:g} s: {why}")
        self.asked = now
        self.retries += 1
        why = f": {event.obstacle}" if event.obstacle else ""
        word = Report(text=f"waiting for a server at {self.facts.address} ({now - self.started:.0f} s){why}")
        return [word] if self.retries % JOINS_EVERY else [word, Tell(message=self.facts.join)]

    def _miss(self, now: float) -> list[ShardEffect]:
        # It calls every second, and so is either gone or cannot.
        if now < self.heard + self.facts.silence_s:
            return []
        return self._end(1, f"the server at {self.facts.address} has been silent for {now - self.heard:.0f} s")

    # Workers and their sums

    def _serve(self, event: "Service", visitors: WorkerConnections) -> list[ShardEffect]:
        match event:
            case events.WorkerAdmitted():
                visitors.admit(event.admit)
                return [MapSums(rank=event.admit.rank)] if event.admit.shares else []
            case events.WorkerForgotten():
                visitors.forget(event.rank)
                return [DropSums(rank=event.rank)]
            case events.WorkerGreeted():
                return self._weights(visitors.greet(event.peer, event.hello))
            case events.WeightsWanted():
                visitor = visitors.by_rank.get(event.serve.rank)
                if visitor is not None:
                    visitor.wanted = event.serve.step
                return self._weights(visitor)
            case events.SumsFrameReceived():
                return self._take(event, visitors)
            case events.SumsShared(add=add):
                visitor = visitors.by_rank.get(add.rank)
                if add.step != self.step or visitor is None or not visitor.admit.shares:
                    return []
                stored = SumsAck(rank=add.rank, step=add.step, lo=add.lo, hi=add.hi)
                return [AddSharedSlice(node=add.node(), rank=add.rank, slot=add.slot), Tell(message=stored)]
            case events.SumsMissing():
                visitors.forget(event.rank)
                return [Tell(message=WorkerLost(rank=event.rank, reason=shortened(event.reason)))]
            case events.SquaresWanted(asked=asked):
                if asked.step != self.step:
                    return self._break(self._other_step(asked.step))
                return [SendSquares(step=asked.step, count=asked.count)]
            case events.UpdateWanted():
                return self._update(event.update, visitors)
            case events.PeerFailed():
                return self._drop(event, visitors)
            case _:
                assert_never(event)

    def _weights(self, visitor: WorkerConnection | None) -> list[ShardEffect]:
        """Return what sends a worker the weights, if it waits for those at hand and can be reached."""
        if visitor is None or self.visitors is None or not self.visitors.is_due(visitor, self.step):
            return []
        assert visitor.peer is not None  # otherwise nothing is due
        return [SendWeights(peer=visitor.peer)]

    def _take(self, event: events.SumsFrameReceived, visitors: WorkerConnections) -> list[ShardEffect]:
        part, node, rank = event.part, event.part.node(), visitors.rank_of(event.peer)
        if rank is None or not visitors.take(event.peer, part, event.frame, self.step):
            return []
        effects: list[ShardEffect] = [AddFrame(frame=event.frame, node=node)]
        if visitors.book.is_whole(event.peer, part.step, node):
            effects.append(Tell(message=SumsAck(rank=rank, step=part.step, lo=part.lo, hi=part.hi)))
        return effects

    def _update(self, update: Update, visitors: WorkerConnections) -> list[ShardEffect]:
        if update.step != self.step:
            return self._break(self._other_step(update.step))
        self.step += 1
        served: list[ShardEffect] = []
        for rank in update.ranks:
            visitor = visitors.by_rank.get(rank)
            if visitor is not None:
                visitor.wanted = self.step
                served += self._weights(visitor)
        return [UpdateSlice(update=update), *served]

    def _other_step(self, step: int) -> str:
        return f"the server is at step {step}, this shard at {self.step}: expected the same"

    def _drop(self, event: events.PeerFailed, visitors: WorkerConnections) -> list[ShardEffect]:
        rank = visitors.rank_of(event.peer)
        visitors.forget_peer(event.peer)
        refused = RefusePeer(peer=event.peer, refused=Refused(reason=shortened(event.reason), kind=RefusalKind.FAILED))
        if rank is None:
            return [refused]
        visitors.forget(rank)
        return [refused, DropSums(rank=rank), Tell(message=WorkerLost(rank=rank, reason=shortened(event.reason)))]

    def validate(self) -> None:
        """Raise AssertionError where the state contradicts itself: for tests, after each event."""
        if self.visitors is not None:
            self.visitors.validate()


#: What a shard hears of workers and their sums.
Service = (
    events.WorkerAdmitted
    | events.WorkerForgotten
    | events.WorkerGreeted
    | events.WeightsWanted
    | events.SumsFrameReceived
    | events.SumsShared
    | events.SumsMissing
    | events.SquaresWanted
    | events.UpdateWanted
    | events.PeerFailed
)
