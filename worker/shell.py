"""The worker's shell: turns frames into events and effects into frames. Decides nothing."""

import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from common.aggregation.slices import Slice
from common.aggregation.tree import Node, Vector, is_node
from common.errors import DataError, LockstepError, RemoteProtocolError
from common.job.tally import Tally, pack_losses
from common.protocol.codec import decode, encode
from common.protocol.messages import (
    OF_A_STEP,
    Eviction,
    Finished,
    Lease,
    Message,
    Ping,
    Refused,
    Result,
    Samples,
    ServerMessage,
    Standby,
    Status,
    SumsFrame,
    Weights,
    Welcome,
)
from common.protocol.shard_messages import Hello
from common.runtime.clock import Clock
from common.transport.diagnosis import Diagnosis
from common.transport.links import Wait, wait_for_nothing
from common.transport.port import ClientPort
from worker import effects, events
from worker.assembly import WeightsAssembly, assembly_of
from worker.compute import Compute, NotFiniteError
from worker.connections import PATIENCE_S, Dial, ServerConnections
from worker.digest import result_digest
from worker.sample_fetcher import SampleFetcher
from worker.setup import Loader, Places, prepare
from worker.state import WorkerPhase, WorkerState


@dataclass
class WorkerShell:
    """One worker: its state, and the means by which the state's effects happen."""

    state: WorkerState
    port: ClientPort
    clock: Clock
    load: Loader
    say: Callable[[str], None]
    #: Where memory that a server offers is looked for, None where none is to be shared.
    root: Path | None = None
    #: How other servers of a run are reached, None where there can be none.
    dial: Dial | None = None
    wait: Wait = wait_for_nothing
    #: Finds out what is in the way of a connection, None where nothing can be.
    trouble: Callable[[], Diagnosis | None] | None = None
    #: Where samples are kept that a server sends to who lacks the data, None where none are taken.
    cache: Path | None = None
    #: Set once the worker has ended: the process's exit code and the reason.
    ended: effects.Exit | None = None
    servers: ServerConnections = field(init=False)
    _compute: Compute | None = None
    #: What sees to samples that the server sends; None where the data is here.
    _supply: SampleFetcher | None = None
    #: Whether that computes in memory which the server sees.
    _shares: bool = False
    #: The frames of the weights that are on their way here.
    _weights: WeightsAssembly = field(default_factory=lambda: WeightsAssembly({}))
    #: The arrays of the message at hand.
    _arrays: list[Vector] = field(default_factory=list)
    #: The sums of the lease at hand that its result is to carry, valid until the next is computed.
    _sums: list[Vector] = field(default_factory=list)
    #: Seconds in which the lease at hand was not computed, but what there was of its sums was sent.
    _pushing_s: float = 0.0

    def __post_init__(self) -> None:
        self.servers = ServerConnections(self.port, self.dial, self.wait)

    def run(self) -> effects.Exit:
        """Work until the run is over, the server is gone, or the process is interrupted."""
        try:
            self.begin()
            while self.ended is None:
                self.step()
        except KeyboardInterrupt:
            self.interrupt()
        finally:
            self.close()
        assert self.ended is not None
        return self.ended

    def close(self) -> None:
        """Close all connections."""
        self.servers.close()

    def begin(self) -> None:
        """Ask for a place in the run."""
        self._happen(events.Started())

    def interrupt(self) -> None:
        """Leave the run now."""
        self._happen(events.Interrupted())

    def step(self) -> bool:
        """Handle one message, or the passing of time; return whether anything happened."""
        deadline = self.state.deadline()
        frames = self.servers.receive(None if deadline is None else max(0.0, deadline - self.clock.now()))
        if frames is not None:
            self._hear(frames)
            return True
        if deadline is not None and self.clock.now() >= deadline:
            self._happen(self._time_passed())
            return True
        return False

    def _time_passed(self) -> events.TimePassed:
        """Return that time passed, and where no server has answered yet, what is in the way."""
        trouble = self.trouble() if self.state.phase is WorkerPhase.JOINING and self.trouble is not None else None
        if trouble is None:
            return events.TimePassed()
        return events.TimePassed(obstacle=trouble.text, is_hopeless=trouble.is_final)

    def _hear(self, frames: list[memoryview]) -> None:
        try:
            message, self._arrays = decode(frames, ServerMessage)
            event = self._event(message)
        except RemoteProtocolError as error:
            event = events.ProtocolBroken(fault=str(error))
        if event is not None:
            self._happen(event)

    def _event(self, message: Message) -> events.Event | None:
        match message:
            case Welcome():
                return events.Welcomed(welcome=message)
            case Refused():
                return events.JoinRefused(refused=message)
            case Eviction():
                return events.Evicted(fenced=message)
            case Standby():
                return events.ToldToStandBy(standby=message)
            case Samples():
                return self._keep(message)
            case Weights():
                return events.WeightsReceived(step=message.step) if self._install(message) else None
            case Lease():
                return self._leased(message)
            case Finished():
                return events.RunFinished(finished=message)
            case Ping():
                return events.ServerAnswered()
            case Status():
                return None
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is no message for a worker")

    def _leased(self, lease: Lease) -> events.Event:
        """Take a lease that is one: of pieces which are none it would take years to see that they are empty."""
        pieces = 0 if self._compute is None else self._compute.pieces_of(lease.work)
        if self._compute is not None and not is_node(lease.lo, lease.hi, pieces):
            raise RemoteProtocolError(f"a lease of [{lease.lo}, {lease.hi}): no node of {pieces} pieces")
        return events.LeaseReceived(lease=lease)

    def _keep(self, samples: Samples) -> events.Event:
        """Keep samples that were asked for."""
        if self._supply is None:
            raise RemoteProtocolError("samples that nobody asked for")
        try:
            self._supply.take(samples, self._arrays[0])
        except DataError as error:
            return events.SamplesUnkept(reason=str(error))
        return events.SamplesReceived()

    def _install(self, weights: Weights) -> bool:
        """Copy a frame that came into its slot, and return whether the weights are whole now.

        Meanwhile the model may compute with the other slot. Where it is even two steps behind, and computes with
        weights that are torn, what comes of it is as late, and nobody takes it.
        """
        words, start, compute = self._arrays[0], weights.start, self._compute
        part = Slice(start, start + self._weights.lengths.get(start, 0))
        expected = 0 if compute is None else compute.wire_weights.words(part)
        if compute is None or self._shares or len(words) != expected:
            raise RemoteProtocolError(f"weights of {len(words)} values from {start} on: expected {expected}")
        compute.wire_weights.unpack(words, start, part.of(compute.slots[weights.step % 2]))
        return self._weights.take(weights.step, start)

    def _happen(self, event: events.Event) -> None:
        """Let the state handle an event, and whatever its effects lead to."""
        pending = deque([event])
        while pending:
            for effect in self.state.handle(pending.popleft(), self.clock.now()):
                following = self._perform(effect)
                if following is not None:
                    pending.append(following)

    def _perform(self, effect: effects.Effect) -> events.Event | None:
        match effect:
            case effects.Send():
                self.servers.send(encode(effect.message))
            case effects.SendResult():
                self.servers.send(encode(effect.result, self._sums), PATIENCE_S)
            case effects.Report():
                self.say(effect.text)
            case effects.Exit():
                self.ended = effect
            case effects.Prepare():
                return self._prepare(effect.welcome)
            case effects.Greet():
                self.servers.greet()
            case effects.ComputeLease():
                return self._compute_piece(effect.lease)
            case _:
                assert_never(effect)
        return None

    def _prepare(self, welcome: Welcome) -> events.Event:
        try:
            place = prepare(welcome, self.load, Places(self.root, self.cache))
        except LockstepError as error:
            return events.PreparationFailed(reason=str(error))
        self._compute, self._shares = place.compute, bool(place.nonce)
        self._supply = None if place.store is None else SampleFetcher(place.store, place.compute)
        self._weights = assembly_of(self._compute.frames)
        try:
            self._meet(welcome, place.compute)
        except LockstepError as error:
            return events.PreparationFailed(reason=str(error))
        # Where there is none, sums go in frames, and nothing may overtake them on the way of a life before.
        self.port.shorten(place.shortcut)
        return events.Prepared(nonce=place.nonce, obstacle=place.obstacle)

    def _meet(self, welcome: Welcome, compute: Compute) -> None:
        """Dial the other servers, unless the memory that all of them share is all there is to exchange."""
        hello = Hello(rank=welcome.rank, incarnation=self.state.join().incarnation)
        self.servers.meet([] if self._shares else welcome.shards, compute.layout.size, hello)

    def _compute_piece(self, lease: Lease) -> events.Event:
        assert self._compute is not None
        began, self._pushing_s = self.clock.now(), 0.0
        node, is_training = Node(lease.lo, lease.hi), lease.work in OF_A_STEP
        asked = None if self._supply is None else self._supply.lacked(lease, self.state.leases)
        if asked is not None:
            return events.SamplesLacked(lease=lease, asked=asked)
        self._compute.turn(lease.step, into=lease.slot if self._shares else 0)
        try:
            self._sums = []
            tally = self._train(self._compute, lease) if is_training else self._compute.evaluate(node, lease.work)
        except NotFiniteError as error:
            return events.LeaseDiverged(lease=lease, piece=error.piece, layer=error.layer, quantity=error.quantity)
        except Exception:  # noqa: BLE001  # whatever a model of one's own raises reaches the person at the server
            return events.LeaseRaised(lease=lease, traceback=traceback.format_exc())
        result = Result(
            work=lease.work,
            step=lease.step,
            lo=lease.lo,
            hi=lease.hi,
            loss_sum=tally.loss_sum,
            correct=tally.correct,
            count=tally.count,
            compute_s=max(0.0, self.clock.now() - began - self._pushing_s),
            number=lease.number,
            losses=pack_losses(self._compute.losses) if is_training else b"",
            digest=result_digest(self._compute.into, self._compute.losses, tally) if lease.is_digested else "",
        )
        return events.LeaseComputed(result=result)

    def _train(self, compute: Compute, lease: Lease) -> Tally:
        """Compute the sums of a lease, where the server sees them or to be sent; those of an audit are not.

        Those that are longer than one frame are sent frame by frame on the way.
        """
        node = Node(lease.lo, lease.hi)
        if self._shares or lease.work == "audit":
            return compute.train(lease.step, node)[1]
        if len(compute.frames) == 1:
            sums, tally = compute.train(lease.step, node)
            self._sums = [compute.wire.pack(sums, 0)]
            return tally

        def push(frame: Slice) -> None:
            began = self.clock.now()
            part = SumsFrame(step=lease.step, lo=lease.lo, hi=lease.hi, start=frame.start)
            # With patience: a frame that is not sent would cost the whole lease.
            words = compute.wire.pack(frame.of(compute.into), frame.start)
            self.servers.send(encode(part, [words]), PATIENCE_S, frame.start)
            self._pushing_s += self.clock.now() - began

        return compute.train(lease.step, node, push)[1]
