"""A worker's part in one run, from a welcome until the next: its model, its team, and the lease that is computed."""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import assert_never

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector, is_node
from lockstep.common.errors import DataError, RemoteProtocolError, SharingError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.tally import Tally, pack_losses, pack_sums, result_digest
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import (
    NAME_LIMIT,
    OF_A_STEP,
    ComputeFailed,
    Diverged,
    Dropped,
    Lease,
    MultiStepLease,
    Ready,
    Result,
    Samples,
    SumsFrame,
    Weights,
    Welcome,
    Withdrawal,
    shortened,
)
from lockstep.common.protocol.shard_messages import Hello
from lockstep.worker import state as machine
from lockstep.worker.connections import SEND_TIMEOUT_S, ServerConnections, WeightsAssembly
from lockstep.worker.gradient_sink import NotFiniteError
from lockstep.worker.node_sums import StoppedError
from lockstep.worker.samples import request_for_lease
from lockstep.worker.setup import LoadedRun
from lockstep.worker.team.leader import Found, Leader
from lockstep.worker.team.progress import Order, OrderOutcome
from lockstep.worker.team.session import LeaderSetup, TeamContext, lead


@dataclass
class LeaseRun:
    """A lease that this process computes, or its team."""

    session: "WorkerSession"
    lease: Lease
    began: float = field(init=False)
    #: Seconds that were spent on sending and not on computing.
    sending_s: float = 0.0
    #: How many frames of sums the server that decides is still to be sent.
    left: int = field(init=False)
    #: The last of them, with its first element, which the result carries; None before it is final.
    last: tuple[int, Vector] | None = None
    #: Messages wait until it is done.
    lets_messages_in = False

    def __post_init__(self) -> None:
        self.began = self.session.context.clock.now()
        frames, servers = self.session.setup.compute.frames, self.session.servers
        self.left = sum(servers.is_for_first(frame.start) for frame in frames)

    def is_on_time(self) -> bool:
        return True

    def is_ended_by(self, message: object) -> bool:
        return isinstance(message, Withdrawal) and message.number == self.lease.number

    def stopped(self) -> machine.Event:
        leader = self.session.leader
        computed = 0 if leader is None else leader.computed()
        return machine.LeaseStopped(lease=self.lease, computed=computed)

    def ended(self, leader: Leader, order: Order, outcome: OrderOutcome) -> machine.Event:
        match outcome:
            case OrderOutcome.DONE:
                return self._team_result(leader, order)
            case OrderOutcome.STOPPED:
                return self.stopped()
            case OrderOutcome.FAILED:
                # This process finds the same error as the one that could not compute it, and reports it.
                return self.compute_alone()
            case _:
                assert_never(outcome)

    def _team_result(self, leader: Leader, order: Order) -> Result:
        """Return the result that the team has computed, after its sums were sent."""
        lease, compute = self.lease, self.session.setup.compute
        out = compute.sums[0] if lease.work in OF_A_STEP else None
        found = leader.found(order, out)
        if out is not None and lease.work != "audit":
            for frame in compute.frames:
                self._send_frame(frame.start, compute.wire.pack(frame.of(out), frame.start))
        digest = result_digest(out, found.losses, found.tally) if out is not None and lease.is_digested else ""
        return self._result(found, digest)

    def compute_alone(self) -> machine.Event:
        """Compute the lease in this process."""
        lease, compute, clock = self.lease, self.session.setup.compute, self.session.context.clock
        is_training = lease.work in OF_A_STEP
        compute.turn(lease.step)
        try:
            tally = self._train() if is_training else compute.evaluate(lease.node(), lease.work)
        except NotFiniteError as error:
            return Diverged(
                number=lease.number,
                micro_batch=error.micro_batch,
                layer=one_line(error.layer, NAME_LIMIT),
                quantity=error.quantity,
            )
        except StoppedError as error:
            return machine.LeaseStopped(lease=lease, computed=error.computed)
        except Exception:  # noqa: BLE001  # whatever a user's model raises is reported at the server
            return ComputeFailed(number=lease.number, traceback=shortened(traceback.format_exc()))
        losses = compute.losses if is_training else []
        digest = result_digest(compute.into, losses, tally) if lease.is_digested else ""
        compute_s = max(0.0, clock.now() - self.began - self.sending_s)
        return self._result(Found(tally=tally, losses=losses, compute_s=compute_s), digest)

    def _train(self) -> Tally:
        """Compute the sums, and send them frame by frame on the way; those of an audit are not sent."""
        lease, compute = self.lease, self.session.setup.compute
        send = None if lease.work == "audit" else self._send_frame
        return compute.train(lease.step, lease.node(), send)[1]

    def _send_frame(self, start: int, words: Vector) -> None:
        clock, lease, servers = self.session.context.clock, self.lease, self.session.servers
        self.left -= servers.is_for_first(start)
        if not self.left and self.last is None:
            self.last = start, words
            return
        began = clock.now()
        part = SumsFrame(step=lease.step, lo=lease.lo, hi=lease.hi, start=start)
        # With a timeout: a frame that is not sent would cost the whole lease.
        servers.send(encode(part, [words]), SEND_TIMEOUT_S, start)
        self.sending_s += clock.now() - began

    def _result(self, found: Found, digest: str) -> Result:
        lease, tally = self.lease, found.tally
        return Result(
            work=lease.work,
            step=lease.step,
            lo=lease.lo,
            hi=lease.hi,
            loss_sum=tally.loss_sum,
            count=tally.count,
            ignored=tally.ignored,
            weight=tally.weight,
            metrics=pack_sums(tally.metrics),
            compute_s=found.compute_s,
            number=lease.number,
            start=None if self.last is None else self.last[0],
            losses=pack_losses(found.losses) if lease.work in OF_A_STEP else b"",
            digest=digest,
        )


@dataclass
class StepsRun:
    """A multi-step lease, whose steps the team makes without the server."""

    number: int
    leader: Leader
    say: Callable[[str], None]
    #: The server sends few, and they are handled between two steps.
    lets_messages_in = True

    def is_on_time(self) -> bool:
        """Return whether the other processes have not made the current step yet."""
        return self.leader.member.is_wanted()

    def is_ended_by(self, message: object) -> bool:
        # With a lease, the server has seen the last step before us.
        return isinstance(message, Withdrawal | Lease)

    def stopped(self) -> machine.Event:
        return Dropped(number=self.number)

    def ended(self, leader: Leader, order: Order, outcome: OrderOutcome) -> machine.Event:
        if outcome is OrderOutcome.FAILED:
            error = leader.member.error or "another process of the team says why"
            self.say(f"the team leaves steps to the server: {one_line(error)}")
        return self.stopped()


@dataclass
class WorkerSession:
    """The worker's model, data and team in one run, its share of the memory, and its current work."""

    welcome: Welcome
    loaded: LoadedRun
    context: TeamContext
    servers: ServerConnections
    setup: LeaderSetup = field(init=False)
    #: Gives orders to the team; None if there is no other process, and no memory is shared.
    leader: Leader | None = field(init=False)
    #: The frames of the weights that have come.
    weights: WeightsAssembly = field(init=False)
    #: The lease that is computed, or was computed last.
    work: LeaseRun | StepsRun | None = None

    def __post_init__(self) -> None:
        """Make room for the run; `LockstepError` if that fails."""
        setup = self.setup = lead(self.welcome, self.loaded, self.context)
        self.leader = None if setup.member is None else Leader(setup.member, self.context.meeting)
        self.weights = WeightsAssembly({frame.start: len(frame) for frame in setup.compute.frames})
        setup.compute.is_wanted = self._is_wanted

    def connect(self, incarnation: str) -> None:
        """Dial the other servers of the run; `LockstepError` if that fails."""
        # If all servers share memory with us, there is nothing to exchange with the others.
        addresses = [] if self.shares else self.welcome.shards
        hello = Hello(rank=self.welcome.rank, incarnation=incarnation)
        try:
            self.servers.connect(addresses, self.setup.compute.layout.size, hello)
        except BaseException:  # of an interrupt too: nothing else knows the session yet
            self.close()
            raise

    def close(self) -> None:
        """Free the memory of the team."""
        self.setup.close()

    @property
    def shares(self) -> bool:
        """True if it computes with weights in memory of the server."""
        return self.setup.shared is not None

    @property
    def is_busy(self) -> bool:
        """True while the team works on an order."""
        return self.leader is not None and self.leader.is_busy

    def ready(self) -> Ready:
        """Return the answer to the welcome."""
        setup, shared = self.setup, self.setup.shared
        return Ready(
            nonce="" if shared is None else shared.nonce,
            obstacle=shortened(setup.obstacle),
            makers=0 if shared is None or setup.member is None else setup.member.memory.shape.makers,
            rank=self.welcome.rank,
            part=self.welcome.part,
        )

    # Messages

    def check_lease(self, lease: Lease) -> machine.Event:
        """Check that a lease is a node of the tree: 2**31 micro-batches that do not exist would take years."""
        micro_batches = self.setup.compute.batches.micro_batches_of(lease.work)
        if not is_node(lease.lo, lease.hi, micro_batches):
            raise RemoteProtocolError(
                f"a lease of [{lease.lo}, {lease.hi}): not a node of {micro_batches} micro-batches"
            )
        return self._follow(lease)

    def check_steps(self, lease: MultiStepLease, incarnation: str) -> list[machine.Event]:
        """Check that there are such steps; those for this process before it joined again are ignored."""
        if self.leader is None or lease.incarnation != incarnation:
            return []
        if not (self.shares and lease.first < lease.last):
            raise RemoteProtocolError(f"a lease of steps {lease.first} to {lease.last}: not one for this worker")
        return [self._follow(lease)]

    def _follow(self, lease: Lease | MultiStepLease) -> machine.Event:
        """Return a lease once the memory that it names is mapped."""
        try:
            if self.leader is not None:
                self.leader.member.follow(lease.memory)
        except SharingError as error:
            return machine.MemoryLost(reason=str(error))
        return lease

    def store(self, samples: Samples, words: Vector) -> machine.Event:
        """Store samples that the server has sent."""
        if self.loaded.store is None:
            raise RemoteProtocolError("samples that were not requested")
        try:
            self.loaded.store.put(samples, words)
        except DataError as error:
            return machine.SamplesNotStored(reason=str(error))
        return samples

    def install(self, weights: Weights | Lease, frames: Iterable[Vector]) -> list[machine.Event]:
        """Copy the frame of weights, if a message carries one, into its slot; return that they are complete if so.

        Meanwhile the model may compute with the other slot. If it is even two steps behind, and computes with weights
        that change under it, its result is late as well, and is not used.
        """
        start, compute = weights.start or 0, self.setup.compute
        is_complete = False
        for words in frames:
            part = Slice(start, start + self.weights.lengths.get(start, 0))
            expected = compute.wire_weights.words(part)
            if self.shares or len(words) != expected:
                raise RemoteProtocolError(f"weights of {len(words)} values from {start} on: expected {expected}")
            compute.wire_weights.unpack(words, start, part.of(compute.slots[weights.step % 2]))
            is_complete = self.weights.add(weights.step, start)
        return [machine.WeightsReceived(step=weights.step)] if is_complete else []

    # Work

    def carried_by(self, result: Result) -> list[Vector]:
        """Return the frame of sums that a result carries, which is of the current work."""
        work = self.work
        return [work.last[1]] if isinstance(work, LeaseRun) and work.last and result.start is not None else []

    def begin_lease(self, lease: Lease, later: Iterable[Lease]) -> list[machine.Event]:
        """Compute a lease, alone or with the team; return its result, nothing if that comes later."""
        store, batches = self.loaded.store, self.setup.compute.batches
        request = None if store is None else request_for_lease(store, batches, lease, later)
        if request is not None:
            return [machine.SamplesMissing(lease=lease, request=request)]
        work = self.work = LeaseRun(self, lease)
        self.servers.begin_looking(self.context.clock.now())
        if self.leader is None or not self.leader.can_divide(lease):
            return [work.compute_alone()]
        self.leader.begin_lease(lease)
        return []

    def begin_steps(self, lease: MultiStepLease) -> list[machine.Event]:
        """Let the team make steps; return that it does not if its memory is gone."""
        if self.leader is None:
            return [Dropped(number=lease.number)]
        work = self.work = StepsRun(lease.number, self.leader, self.context.say)
        self.servers.begin_looking(self.context.clock.now())
        try:
            self.leader.begin_steps(lease)
        except SharingError:
            return [work.stopped()]
        return []

    def stop(self) -> list[machine.Event]:
        """Give up the order of the team; return the end of its work."""
        if self.leader is not None:
            self.leader.stop()
        return [] if self.work is None else [self.work.stopped()]

    def advance(self, now: float) -> list[machine.Event]:
        """Continue the team's order, or wait until that is due; return the end of the order if it has ended."""
        leader, work = self.leader, self.work
        if leader is None or work is None:
            return []
        due = leader.member.due()
        if leader.meeting is None and due is not None and due > now:
            # There is no other process to wait for, only the server.
            self.servers.listen(due - now)
            return []
        order, outcome = leader.order, leader.advance(now)
        return [] if outcome is None or order is None else [work.ended(leader, order, outcome)]

    def is_withdrawn(self) -> bool:
        """Return whether the current work is withdrawn, as far as is known; look from time to time."""
        return self.work is not None and self.servers.has_come(self.work.is_ended_by, self.context.clock.now())

    def _is_wanted(self) -> bool:
        return not self.is_withdrawn() and (self.work is None or self.work.is_on_time())
