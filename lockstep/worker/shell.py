"""The worker's shell: turns frames into events and effects into frames. Decides nothing."""

import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector, is_node
from lockstep.common.errors import DataError, LockstepError, RemoteProtocolError, SharingError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.tally import Tally, pack_losses, pack_sums
from lockstep.common.model.source import ModelSource
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
    Standby,
    StandbyAddress,
    Status,
    SumsFrame,
    Weights,
    Welcome,
    Withdrawal,
    shortened,
)
from lockstep.common.protocol.shard_messages import Hello, ShardWelcome
from lockstep.common.protocol.statement import result_digest, statement_of
from lockstep.common.runtime.clock import ThreadClock
from lockstep.common.statemachine.client import ClientEvent, Exit, PreparationFailed, Prepared
from lockstep.common.statemachine.client_shell import ClientShell
from lockstep.common.statemachine.machine import TimePassed
from lockstep.common.transport.diagnosis import Diagnosis
from lockstep.common.transport.links import Wait, wait_for_nothing
from lockstep.common.transport.port import ClientPort, Dial
from lockstep.worker import state as machine
from lockstep.worker.compute import Compute
from lockstep.worker.connections import SEND_TIMEOUT_S, ServerConnections, WeightsAssembly
from lockstep.worker.gradient_sink import NotFiniteError
from lockstep.worker.node_sums import StoppedError
from lockstep.worker.samples import SampleFetcher
from lockstep.worker.setup import BuildModel, Loader, gather
from lockstep.worker.state import WorkerState
from lockstep.worker.team.leader import Found, Leader
from lockstep.worker.team.meeting import Meeting
from lockstep.worker.team.member import TeamMember
from lockstep.worker.team.progress import PATIENT, Order, OrderOutcome, Patience
from lockstep.worker.team.session import LeaderSetup, TeamContext, default_roots, dismiss, foretell, lead

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
    clock: ThreadClock
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
    #: Where the processes of its team meet, None if it is the only one; and how long they wait for one another.
    meeting: Meeting | None = None
    patience: Patience = PATIENT
    #: Where the memory of the team may be, the best first.
    roots: tuple[Path, ...] = field(default_factory=default_roots)
    #: What makes it one process of its team.
    kind: type[TeamMember] = TeamMember
    build: BuildModel = ModelSource.build
    #: Signs what the server records of this worker, None if there is no key for that.
    sign: Callable[[bytes], bytes] | None = None
    ended: Exit | None = None
    expected = ServerMessage
    servers: ServerConnections = field(init=False)
    arrays: list[Vector] = field(default_factory=list)
    _compute: Compute | None = None
    _welcome: Welcome | None = None
    #: What is computed with, and the team: None if there is no other process, and no memory is shared.
    _setup: LeaderSetup | None = None
    _leader: Leader | None = None
    #: Gets the samples that the server sends; None if the data is here.
    _fetcher: SampleFetcher | None = None
    #: The frames of the weights that are on their way here.
    _weights: WeightsAssembly = field(default_factory=lambda: WeightsAssembly({}))
    #: Seconds of the lease at hand that were spent on sending and not on computing.
    _sending_s: float = 0.0
    #: The lease at hand, when it was begun, and when it was last looked whether it is wanted.
    _at_hand: Lease | None = None
    _began: float = 0.0
    _looked: float = 0.0
    #: Messages that were read while a lease was computed.
    _early: deque[list[memoryview]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.servers = ServerConnections(self.port, self.dial, self.wait)

    def close(self) -> None:
        self._end_team()
        if self.meeting is not None:
            if self.ended is not None:
                dismiss(self.ended.code, self.meeting)
            self.meeting.close()
        self.servers.close()

    def _end_team(self) -> None:
        if self._setup is not None:
            self._setup.close()
            self._setup = self._leader = None

    def deadline(self) -> float | None:
        """Return when `step` has something to do even if no message comes: with work at hand, a moment that is past."""
        has_work = self.state.has_work() or bool(self._early)
        return self.state.client.search.heard if has_work else self.state.deadline()

    def step(self) -> bool:
        """Handle one message, or compute a lease if none is waiting, or handle the passing of time.

        While the team works on an order, do what is due of it.
        """
        if self._leader is not None and self._leader.is_busy:
            self._work(self._leader)
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

    def _work(self, leader: Leader) -> None:
        """Do what is due of the order at hand; now and then, handle a message, or find out that it is withdrawn."""
        if not self.state.is_busy():
            leader.stop()  # it has left the run
            return
        if not self._is_wanted():
            leader.stop()
            self.dispatch(self._stopped())
            return
        if self.state.steps is not None and self._early:
            self.on_server_message(self._early.popleft())
            return
        order, now = leader.member.order, self.clock.now()
        if self._misses_server(now):
            self.dispatch(TimePassed())
            return
        due = leader.member.due()
        if self.meeting is None and due is not None and due > now:
            # Nobody will ring: it is the server that is waited for.
            frames = self.servers.receive(due - now)
            self._early.extend([] if frames is None else [frames])
            return
        outcome = leader.advance(now)
        if outcome is not None and order is not None:
            self.dispatch(self._outcome_of(leader, outcome))

    def _misses_server(self, now: float) -> bool:
        """Tell whether it is time to ask the server, which sends nothing while a team makes steps, or to leave it."""
        client = self.state.client
        if self.state.steps is None or not client.search.named:
            return False  # there is nobody else to go to
        due = client.deadline()
        return due is not None and now >= due

    def _stopped(self) -> machine.Event:
        """Return that the lease at hand is not wanted any more."""
        if self.state.steps is not None:
            return machine.StepsEnded(is_done=False)
        assert self._at_hand is not None
        computed = 0 if self._leader is None else self._leader.computed()
        return machine.LeaseStopped(lease=self._at_hand, computed=computed)

    def _outcome_of(self, leader: Leader, outcome: OrderOutcome) -> machine.Event:
        if self.state.steps is not None:
            if outcome is OrderOutcome.FAILED:
                error = leader.member.error or "another process of the team says why"
                self.say(f"the team leaves steps to the server: {one_line(error)}")
            return machine.StepsEnded(is_done=outcome is OrderOutcome.DONE)
        lease, order = self._at_hand, leader.order
        assert lease is not None
        assert order is not None
        match outcome:
            case OrderOutcome.DONE:
                return self._team_result(leader, order, lease)
            case OrderOutcome.STOPPED:
                return self._stopped()
            case OrderOutcome.FAILED:
                # Whoever could not compute it would have found the same alone: so this process does, and reports it.
                return self._compute_alone(lease)
            case _:
                assert_never(outcome)

    def _team_result(self, leader: Leader, order: Order, lease: Lease) -> machine.Event:
        """Return the result of a lease that the team has computed, after its sums were sent."""
        compute = self._compute
        assert compute is not None
        out = compute.sums[0] if lease.work in OF_A_STEP else None
        found = leader.found(order, out)
        if out is not None and lease.work != "audit":
            for frame in compute.frames:
                self._send_frame(lease, frame.start, compute.wire.pack(frame.of(out), frame.start))
        digest = result_digest(out, found.losses, found.tally) if out is not None and lease.is_digested else ""
        return self._result(lease, found, digest)

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
            if self._leader is not None:
                self._leader.member.follow(lease.memory)
        except SharingError as error:
            return machine.MemoryLost(reason=str(error))
        return lease

    def _check_multi_step_lease(self, lease: MultiStepLease) -> machine.Event | None:
        """Check that there are such steps; those for this process before it joined again are ignored."""
        if self._leader is None or lease.incarnation != self.state.client.join().incarnation:
            return None
        if not (self.state.shares and lease.first < lease.last):
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
        self.servers.send(encode(message), SEND_TIMEOUT_S if isinstance(message, Result) else 0.0)

    def redial(self, server: StandbyAddress) -> None:
        self._early.clear()
        self.servers.redial(server.address, server.public)

    def perform(self, effect: machine.WorkEffect) -> Iterable[machine.Event]:
        match effect:
            case machine.IntroduceToShards():
                self.servers.introduce()
            case machine.ComputeLease():
                event = self._compute_lease(effect.lease)
                return [] if event is None else [event]
            case machine.BeginSteps():
                assert self._leader is not None  # otherwise none was accepted
                try:
                    self._looked = self.clock.now()
                    self._leader.begin_steps(effect.lease)
                except SharingError:
                    return [machine.StepsEnded(is_done=False)]
            case machine.StopSteps():
                assert self._leader is not None  # as above
                self._leader.stop()
                return [machine.StepsEnded(is_done=False)]
            case _:
                assert_never(effect)
        return []

    def prepare(self, welcome: Welcome | ShardWelcome) -> ClientEvent:
        assert isinstance(welcome, Welcome)
        self._welcome = welcome
        self._end_team()
        try:
            if self.meeting is not None:
                foretell(welcome, self.meeting)
            loaded = gather(welcome, self.load, self.cache, self.build)
            setup = self._setup = lead(welcome, loaded, self._context())
            compute, self._compute = setup.compute, setup.compute
            compute.is_wanted = lambda: self._is_wanted() and self._is_on_time()
            self._leader = None if setup.member is None else Leader(setup.member, self.meeting)
            self._fetcher = None if loaded.store is None else SampleFetcher(loaded.store, compute.batches)
            self._weights = WeightsAssembly({frame.start: len(frame) for frame in compute.frames})
            # If all servers share memory with us, there is nothing to exchange with the others.
            addresses = welcome.shards if setup.shared is None else []
            hello = Hello(rank=welcome.rank, incarnation=self.state.client.join().incarnation)
            self.servers.connect(addresses, compute.layout.size, hello)
        except LockstepError as error:
            return PreparationFailed(reason=str(error))
        nonce = "" if setup.shared is None else setup.shared.nonce
        makers = 0 if setup.shared is None or setup.member is None else setup.member.memory.shape.makers
        obstacle = shortened(setup.obstacle)
        ready = Ready(nonce=nonce, obstacle=obstacle, makers=makers, rank=welcome.rank, term=welcome.term)
        return Prepared(ready=ready)

    def _context(self) -> TeamContext:
        return TeamContext(
            clock=self.clock,
            say=self.say,
            patience=self.patience,
            root=self.root,
            roots=self.roots,
            meeting=self.meeting,
            kind=self.kind,
        )

    def _compute_lease(self, lease: Lease) -> machine.Event | None:
        """Compute a lease, alone or with the team; None if its result comes later."""
        request = None if self._fetcher is None else self._fetcher.request_for(lease, self.state.leases)
        if request is not None:
            return machine.SamplesMissing(lease=lease, request=request)
        self._began, self._sending_s = self.clock.now(), 0.0
        self._at_hand, self._looked = lease, self._began
        if self._leader is None or not self._leader.can_divide(lease):
            return self._compute_alone(lease)
        self._leader.begin_lease(lease)
        return None

    def _compute_alone(self, lease: Lease) -> machine.Event:
        """Compute a lease in this process."""
        compute = self._compute
        assert compute is not None
        is_training = lease.work in OF_A_STEP
        compute.turn(lease.step)
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
        losses = compute.losses if is_training else []
        digest = result_digest(compute.into, losses, tally) if lease.is_digested else ""
        compute_s = max(0.0, self.clock.now() - self._began - self._sending_s)
        return self._result(lease, Found(tally=tally, losses=losses, compute_s=compute_s), digest)

    def _result(self, lease: Lease, found: Found, digest: str) -> Result:
        tally = found.tally
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
            losses=pack_losses(found.losses) if lease.work in OF_A_STEP else b"",
            digest=digest,
            signature=self._signature(lease, digest),
        )

    def _signature(self, lease: Lease, digest: str) -> bytes:
        """Return the signature of a result with a digest, empty if the run has none."""
        welcome = self._welcome
        if not (digest and self.sign and welcome is not None and welcome.signed_run):
            return b""
        return self.sign(statement_of(welcome.signed_run, welcome.job.digest(), lease.step, lease.node(), digest))

    def _is_on_time(self) -> bool:
        """Tell whether the step at hand was not made by the other processes."""
        return self.state.steps is None or self._leader is None or self._leader.member.is_wanted()

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
        if self.state.steps is not None:
            # With a lease, the server has seen the last step before us.
            return isinstance(message, MultiStepWithdrawal | Lease)
        return isinstance(message, Withdrawal) and self._at_hand is not None and self._at_hand.key() == message.key()

    def _train(self, compute: Compute, lease: Lease) -> Tally:
        """Compute the sums of a lease, and send them frame by frame on the way; those of an audit are not sent."""
        node = lease.node()
        if lease.work == "audit":
            return compute.train(lease.step, node)[1]
        return compute.train(lease.step, node, lambda start, words: self._send_frame(lease, start, words))[1]

    def _send_frame(self, lease: Lease, start: int, words: Vector) -> None:
        began = self.clock.now()
        part = SumsFrame(step=lease.step, lo=lease.lo, hi=lease.hi, start=start)
        # With a timeout: a frame that is not sent would cost the whole lease.
        self.servers.send(encode(part, [words]), SEND_TIMEOUT_S, start)
        self._sending_s += self.clock.now() - began
