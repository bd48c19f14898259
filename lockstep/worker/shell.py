"""The worker's shell: turns frames into events and effects into frames. Decides nothing."""

import hashlib
import struct
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector, is_node
from lockstep.common.errors import DataError, LockstepError, RemoteProtocolError, SharingError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.tally import Tally, pack_losses
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import (
    NAME_LIMIT,
    OF_A_STEP,
    ComputeFailed,
    Diverged,
    Lease,
    Message,
    MultiStepLease,
    MultiStepWithdrawal,
    Ping,
    Ready,
    Result,
    Samples,
    ServerMessage,
    SliceLease,
    Standby,
    Status,
    SumsFrame,
    Weights,
    Welcome,
    Withdrawal,
    shortened,
)
from lockstep.common.protocol.shard_messages import Hello, ShardWelcome
from lockstep.common.protocol.step_board import MOST_LOSSES
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.client import ClientEvent, Exit, PreparationFailed, Prepared
from lockstep.common.statemachine.client_shell import ClientShell
from lockstep.common.transport.diagnosis import Diagnosis
from lockstep.common.transport.links import Wait, wait_for_nothing
from lockstep.common.transport.port import ClientPort
from lockstep.worker import state as machine
from lockstep.worker.compute import Compute
from lockstep.worker.connections import SEND_TIMEOUT_S, Dial, ServerConnections, WeightsAssembly
from lockstep.worker.gradient_sink import NotFiniteError
from lockstep.worker.multi_step import MultiStepProgress
from lockstep.worker.node_sums import StoppedError
from lockstep.worker.samples import SampleFetcher
from lockstep.worker.setup import Loader, prepare
from lockstep.worker.slice_update import PART, SliceUpdater
from lockstep.worker.state import WorkerState
from lockstep.worker.step_maker import StepMaker

#: Seconds of computing after which the worker looks for the first time, and then each time, whether what it computes is
#: still wanted: to look takes some microseconds.
LOOK_S = 0.002

#: Messages that are read on the way at most: others wait in the socket, where they are limited.
MOST_EARLY = 16


@dataclass
class WorkerShell(ClientShell[machine.WorkEvent, machine.WorkEffect]):
    """One worker: its state, and what carries out the effects of the state."""

    state: WorkerState
    port: ClientPort
    clock: Clock
    load: Loader
    say: Callable[[str], None]
    #: Where memory that a server offers is found, None if none is to be shared.
    root: Path | None = None
    #: How other servers of a run are reached, None if there can be none.
    dial: Dial | None = None
    wait: Wait = wait_for_nothing
    diagnose: Callable[[], Diagnosis | None] | None = None
    #: Where samples are stored that a server sends if the data is not here, None to accept none.
    cache: Path | None = None
    #: Values of a slice of an update that are made at once.
    part: int = PART
    ended: Exit | None = None
    expected = ServerMessage
    servers: ServerConnections = field(init=False)
    arrays: list[Vector] = field(default_factory=list)
    _compute: Compute | None = None
    #: Makes slices of updates; None if no memory is shared.
    _slices: SliceUpdater | None = None
    #: Makes steps with another worker; None where that cannot be.
    _steps: StepMaker | None = None
    #: Gets the samples that the server sends; None if the data is here.
    _fetcher: SampleFetcher | None = None
    #: The frames of the weights that are on their way here.
    _weights: WeightsAssembly = field(default_factory=lambda: WeightsAssembly({}))
    #: The sums of the lease at hand that its result is to carry, valid until the next is computed.
    _sums: list[Vector] = field(default_factory=list)
    #: Seconds of the lease at hand that were spent on sending and not on computing.
    _sending_s: float = 0.0
    #: The lease at hand, and when it was last looked whether it is wanted.
    _at_hand: Lease | None = None
    _looked: float = 0.0
    #: Messages that were read while a lease was computed.
    _early: deque[list[memoryview]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.servers = ServerConnections(self.port, self.dial, self.wait)

    def close(self) -> None:
        self._end_slices()
        self.servers.close()

    def _end_slices(self) -> None:
        if self._slices is not None:
            self._slices.close()
            self._slices = self._steps = None

    def deadline(self) -> float | None:
        """Return when `step` has something to do even if no message comes: with work at hand, a moment that is past."""
        has_work = self.state.has_work() or self.state.is_updating() or bool(self._early)
        return self.state.client.heard if has_work else self.state.deadline()

    def step(self) -> bool:
        """Handle one message, or compute a lease if none is waiting, or handle the passing of time.

        While a slice of an update is being made, make a part of it.
        """
        if self.state.is_updating():
            self.dispatch(machine.PartDue())
            return True
        if self.state.progress is not None:
            self._make_steps(self.state.progress)
            return True
        deadline, has_work = self.state.deadline(), self.state.has_work()
        if self._early:
            self.on_server_message(self._early.popleft())
            return True
        left = None if deadline is None else max(0.0, deadline - self.clock.now())
        frames = self.servers.receive(0.0 if has_work else left)
        if frames is not None:
            self.on_server_message(frames)
        elif has_work:
            self.dispatch(machine.InboxEmptied())
        elif deadline is not None and self.clock.now() >= deadline:
            self.expire()
        else:
            return False
        return True

    def _make_steps(self, progress: MultiStepProgress) -> None:
        """Do what is due for the multi-step lease at hand, or handle a message, but not in the middle of a slice."""
        frames = None
        if progress.is_listening():
            left = max(0.0, progress.due - self.clock.now())
            frames = self._early.popleft() if self._early else self.servers.receive(left)
        if frames is None:
            self.dispatch(machine.StageDue())
        else:
            self.on_server_message(frames)

    # From messages to events

    def event_of(self, message: Message) -> machine.Event | None:
        match message:
            case Welcome() | Standby() | Withdrawal() | MultiStepWithdrawal() | Ping():
                return message
            case Samples():
                return self._store(message)
            case Weights():
                return machine.WeightsReceived(step=message.step) if self._install(message) else None
            case Lease():
                return self._check_lease(message)
            case SliceLease():
                return self._check_slice_lease(message)
            case MultiStepLease():
                return self._check_multi_step_lease(message)
            case Status():
                return None
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is not a message for a worker")

    def _check_lease(self, lease: Lease) -> machine.Event:
        """Check that a lease is a node of the tree: 2**31 micro-batches that do not exist would take years."""
        micro_batches = 0 if self._compute is None else self._compute.batches.micro_batches_of(lease.work)
        if self._compute is not None and not is_node(lease.lo, lease.hi, micro_batches):
            raise RemoteProtocolError(
                f"a lease of [{lease.lo}, {lease.hi}): not a node of {micro_batches} micro-batches"
            )
        return self._follow(lease)

    def _follow(self, lease: Lease | MultiStepLease) -> machine.Event:
        """Return a lease once the memory that it names is mapped."""
        try:
            if self._slices is not None:
                self._slices.follow(lease.memory)
        except SharingError as error:
            return machine.MemoryLost(reason=str(error))
        return lease

    def _check_slice_lease(self, lease: SliceLease) -> machine.Event | None:
        """Check that there is such a slice; one that is for this process before it joined again is ignored."""
        if self._compute is None or self._slices is None or lease.incarnation != self.state.client.join().incarnation:
            return None
        if not lease.start < lease.stop <= self._compute.layout.size:
            raise RemoteProtocolError(f"a slice of values {lease.start} to {lease.stop}: the vector has fewer")
        return lease

    def _check_multi_step_lease(self, lease: MultiStepLease) -> machine.Event | None:
        """Check that there are such steps; those for this process before it joined again are ignored."""
        if self._compute is None or self._steps is None or lease.incarnation != self.state.client.join().incarnation:
            return None
        micro_batches, size = self._compute.batches.micro_batches_of("train"), self._compute.layout.size
        is_half = is_node(lease.lo, lease.hi, micro_batches) and lease.hi - lease.lo <= MOST_LOSSES
        is_ours = self._steps.slices.place.rank in lease.ranks and lease.ranks[0] != lease.ranks[1]
        if not (is_half and is_ours and lease.start < lease.stop <= size and lease.first < lease.last):
            raise RemoteProtocolError(f"a lease of steps {lease.first} to {lease.last}: not one for this worker")
        return self._follow(lease)

    def _store(self, samples: Samples) -> machine.Event:
        if self._fetcher is None:
            raise RemoteProtocolError("samples that nobody requested")
        try:
            self._fetcher.put(samples, self.arrays[0])
        except DataError as error:
            return machine.SamplesNotStored(reason=str(error))
        return samples

    def _install(self, weights: Weights) -> bool:
        """Copy a frame that came into its slot, and return whether the weights are complete now.

        Meanwhile the model may compute with the other slot. If it is even two steps behind, and computes with weights
        that change under it, its result is late as well, and is not used.
        """
        words, start, compute = self.arrays[0], weights.start, self._compute
        part = Slice(start, start + self._weights.lengths.get(start, 0))
        expected = 0 if compute is None else compute.wire_weights.words(part)
        if compute is None or self.state.shares or len(words) != expected:
            raise RemoteProtocolError(f"weights of {len(words)} values from {start} on: expected {expected}")
        compute.wire_weights.unpack(words, start, part.of(compute.slots[weights.step % 2]))
        return self._weights.add(weights.step, start)

    # From effects to actions

    def send_to_server(self, message: Message) -> None:
        if isinstance(message, Result):
            self.servers.send(encode(message, self._sums), SEND_TIMEOUT_S)
        else:
            self.servers.send(encode(message))

    def perform(self, effect: machine.WorkEffect) -> Iterable[machine.Event]:
        match effect:
            case machine.IntroduceToShards():
                self.servers.introduce()
            case machine.ComputeLease():
                return [self._compute_lease(effect.lease)]
            case machine.AdvanceSlice():
                assert self._slices is not None  # otherwise none was accepted
                result = self._slices.advance(effect.lease)
                return [] if result is None else [result]
            case machine.PrepareSteps():
                assert self._steps is not None  # otherwise none was accepted
                try:
                    self._steps.begin(effect.lease)
                except SharingError:
                    return [machine.StageFailed()]
            case machine.AdvanceStage():
                return [self._advance_stage(effect)]
            case _:
                assert_never(effect)
        return []

    def _advance_stage(self, effect: machine.AdvanceStage) -> machine.Event:
        assert self._steps is not None  # otherwise none was accepted
        self._looked = self.clock.now()
        is_done = self._steps.advance(effect.lease, effect.step, effect.stage)
        if is_done is None:
            return machine.StageFailed()
        return machine.StageDone() if is_done else machine.StageNotDone()

    def prepare(self, welcome: Welcome | ShardWelcome) -> ClientEvent:
        assert isinstance(welcome, Welcome)
        try:
            place = prepare(welcome, self.load, self.root, self.cache)
            compute, self._compute = place.compute, place.compute
            compute.is_wanted = self._is_wanted
            self._end_slices()
            shared = place.shared
            if shared is not None:
                self._slices = SliceUpdater(compute, shared, self.clock, self.part)
                self._steps = None if place.store else StepMaker(compute, self._slices, self.clock)
            self._fetcher = None if place.store is None else SampleFetcher(place.store, compute.batches)
            self._weights = WeightsAssembly({frame.start: len(frame) for frame in compute.frames})
            # If all servers share memory with us, there is nothing to exchange with the others.
            addresses = welcome.shards if shared is None else []
            hello = Hello(rank=welcome.rank, incarnation=self.state.client.join().incarnation)
            self.servers.connect(addresses, compute.layout.size, hello)
        except LockstepError as error:
            return PreparationFailed(reason=str(error))
        # Without one, sums go in frames, and none may be overtaken on a shortcut of a run before.
        self.port.shorten(None if shared is None else shared.shortcut)
        nonce = "" if shared is None else shared.nonce
        return Prepared(ready=Ready(nonce=nonce, obstacle=shortened(place.obstacle)))

    def _compute_lease(self, lease: Lease) -> machine.Event:
        compute = self._compute
        assert compute is not None
        request = None if self._fetcher is None else self._fetcher.request_for(lease, self.state.leases)
        if request is not None:
            return machine.SamplesMissing(lease=lease, request=request)
        began, self._sending_s, self._sums = self.clock.now(), 0.0, []
        self._at_hand, self._looked = lease, began
        is_training = lease.work in OF_A_STEP
        compute.turn(lease.step, into=lease.slot if self.state.shares else 0)
        try:
            tally = self._train(compute, lease) if is_training else compute.evaluate(lease.node(), lease.work)
        except NotFiniteError as error:
            return Diverged(
                work=lease.work,
                step=lease.step,
                micro_batch=error.micro_batch,
                layer=one_line(error.layer, NAME_LIMIT),
                quantity=error.quantity,
            )
        except StoppedError as error:
            return machine.LeaseStopped(lease=lease, computed=error.computed)
        except Exception:  # noqa: BLE001  # whatever a user's model raises is reported at the server
            raised = shortened(traceback.format_exc())
            return ComputeFailed(work=lease.work, step=lease.step, lo=lease.lo, hi=lease.hi, traceback=raised)
        return Result(
            work=lease.work,
            step=lease.step,
            lo=lease.lo,
            hi=lease.hi,
            loss_sum=tally.loss_sum,
            correct=tally.correct,
            count=tally.count,
            compute_s=max(0.0, self.clock.now() - began - self._sending_s),
            number=lease.number,
            losses=pack_losses(compute.losses) if is_training else b"",
            digest=result_digest(compute.into, compute.losses, tally) if lease.is_digested else "",
        )

    def _is_wanted(self) -> bool:
        """Tell whether the lease at hand has not been withdrawn, as far as is known; look from time to time."""
        now = self.clock.now()
        if now < self._looked + LOOK_S:
            return True
        self._looked = now
        while len(self._early) < MOST_EARLY and (frames := self.servers.receive(0.0)) is not None:
            self._early.append(frames)
            if self._withdraws(frames):
                return False
        return True

    def _withdraws(self, frames: list[memoryview]) -> bool:
        """Tell whether a message withdraws the lease at hand; whatever it is, it is handled later."""
        try:
            message, _ = decode(frames, ServerMessage)
        except RemoteProtocolError:
            return False
        if self.state.progress is not None:
            return isinstance(message, MultiStepWithdrawal)
        return isinstance(message, Withdrawal) and self._at_hand is not None and self._at_hand.key() == message.key()

    def _train(self, compute: Compute, lease: Lease) -> Tally:
        """Compute the sums of a lease, where the server sees them or to be sent; those of an audit are not sent.

        Sums that are longer than one frame are sent frame by frame on the way.
        """
        node = lease.node()
        if self.state.shares or lease.work == "audit":
            return compute.train(lease.step, node)[1]
        if len(compute.frames) == 1:
            sums, tally = compute.train(lease.step, node)
            self._sums = [compute.wire.pack(sums, 0)]
            return tally

        def send(start: int, words: Vector) -> None:
            began = self.clock.now()
            part = SumsFrame(step=lease.step, lo=lease.lo, hi=lease.hi, start=start)
            # With a timeout: a frame that is not sent would cost the whole lease.
            self.servers.send(encode(part, [words]), SEND_TIMEOUT_S, start)
            self._sending_s += self.clock.now() - began

        return compute.train(lease.step, node, send)[1]


def result_digest(sums: Vector, losses: Sequence[float], tally: Tally) -> str:
    """Return the SHA-256, in hex, by which an audit tells whether another worker's result has the same bits.

    It is taken of the sums as they are sent, the sum of losses of each micro-batch, and the tally.
    """
    digest = hashlib.sha256(sums.data)
    digest.update(pack_losses(losses))
    digest.update(struct.pack("<dqq", tally.loss_sum, tally.correct, tally.count))
    return digest.hexdigest()
