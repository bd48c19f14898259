"""The coordinator decides who computes what, and when a step is complete. No socket, clock, file or array.

What it decides never changes the result, only who computes it: the sums are added over one fixed tree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import CONTINUED, FailureKind, RefusalKind
from lockstep.common.protocol.messages import (
    NO_TERM,
    CallbackDecision,
    ComputeFailed,
    Diverged,
    Dropped,
    Eviction,
    Finished,
    Join,
    Message,
    MultiStepResult,
    NotLeading,
    Ping,
    Ready,
    Result,
    StandbyAddress,
    StandbysChanged,
    Status,
    Welcome,
    shortened,
)
from lockstep.common.statemachine.machine import Machine, Received, Report, Send, soonest
from lockstep.ps.coordinator import events, failures, registration
from lockstep.ps.coordinator.effects import (
    Effect,
    Finish,
    ForgetWorker,
    LeaseSteps,
    Recompute,
    RecordEpoch,
    RecordStep,
    UpdateWeights,
    WithdrawSteps,
)
from lockstep.ps.coordinator.membership import Member, Membership, MemberState, identity_of
from lockstep.ps.coordinator.parts.audit import Audit, AuditFinding, Conviction
from lockstep.ps.coordinator.parts.multi_step import FIRST_STEPS, MultiStepPlan
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, LeaseTable, WithdrawnLease
from lockstep.ps.coordinator.scheduling.round_state import UNKNOWN, RoundState
from lockstep.ps.coordinator.scheduling.scheduler import Scheduler
from lockstep.ps.coordinator.scheduling.stragglers import LeaseTimeouts, StragglerMonitor
from lockstep.ps.coordinator.status import NO_ROOM, Reminder, status_of, waiting_text
from lockstep.ps.coordinator.transitions import PHASES, TRANSITIONS, RunPhase
from lockstep.ps.records.ledger import OTHERS_FASTER, Account, WorkerOut
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round, next_round
from lockstep.ps.run.progress import Progress

#: The answer to a peer that sends what only a member may.
STRANGER = "the server does not know this worker: it was silent for too long, or the server was restarted"


@dataclass
class Coordinator(Machine[events.Event, Effect]):
    """The state of a run, and how it proceeds."""

    transitions = TRANSITIONS
    info: RunInfo
    phase: RunPhase = RunPhase.AWAITING_WORKERS
    membership: Membership = field(default_factory=Membership)
    progress: Progress = field(default_factory=Progress)
    reminder: Reminder = field(default_factory=Reminder)
    #: Why the run failed: the message for people, and its kind.
    failure: str = ""
    failure_kind: FailureKind | None = None
    #: What the disk has no room for, empty if it has; no work is given out meanwhile, and what is under way goes on.
    no_room: str = ""
    #: Addresses of the other servers once they are ready, and whether all servers see the memory that is offered.
    shards: Sequence[str] = ()
    offers_memory: bool = True
    #: Workers that came before all servers were ready, and how they were let in.
    early_joins: dict[bytes, tuple[Join, registration.Admittance]] = field(default_factory=dict)
    #: By identity, who may not come back, and why.
    convicted: Mapping[str, str] = field(default_factory=dict)
    #: Where workers go if this server is gone.
    standbys: tuple[StandbyAddress, ...] = ()
    #: Why no work is leased any more: the run is to be handed over, after the step at hand. Empty if it is not.
    drained: str = ""
    #: The first step whose update came after that was asked for: with it, the slices of several servers are gathered.
    drained_at: int = 0
    #: Who computed the last step, by rank.
    last_ranks: frozenset[int] = frozenset()
    #: The round to begin with if a run is resumed; otherwise the plan's first.
    start: Round | None = None
    #: Steps before the first multi-step lease.
    first_steps: int = FIRST_STEPS
    #: The multi-step lease at hand, and whether that is being withdrawn.
    leased_steps: LeaseSteps | None = None
    is_ending: bool = False
    multi_step: MultiStepPlan = field(init=False)
    state: RoundState = field(init=False)
    scheduler: Scheduler = field(init=False)
    stragglers: StragglerMonitor = field(init=False)

    def __post_init__(self) -> None:
        if self.info.options.servers > 1:
            self.phase = RunPhase.AWAITING_SERVERS
        self.scheduler = Scheduler(LeaseTimeouts(self.info.options.lease_timeout), digests_all=self.info.options.signed)
        self.stragglers = StragglerMonitor(self.scheduler.timeouts, self.scheduler.withdrawals)
        self.progress.targets, self.progress.guess = self.info.targets, self.info.guess
        self.progress.metrics = self.info.metrics
        self._open(self.start or self.info.plan.first())
        self.multi_step = MultiStepPlan(earliest=self.round.step + self.first_steps)

    @property
    def round(self) -> Round:
        """The round at hand, or the last one."""
        return self.state.round

    @property
    def leases(self) -> LeaseTable:
        """The leases of the round at hand."""
        return self.state.leases

    def is_running(self) -> bool:
        """Tell whether micro-batches are being computed."""
        return self.phase in PHASES.values()

    def is_over(self) -> bool:
        """Tell whether the run has ended, well or not."""
        return self.phase in (RunPhase.FINISHED, RunPhase.FAILED)

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        self.stragglers.check(now, self.leases)
        if isinstance(event, Received) and self._is_stranger(event) and not self.is_over():
            # Before the table, which is of the run's phases: whoever this is takes no part in the run.
            return [Send(peer=event.peer, message=Eviction(reason=STRANGER))]
        return self.obey(event, now)

    def _is_stranger(self, event: Received) -> bool:
        return isinstance(event.message, events.FROM_MEMBERS) and event.peer not in self.membership.members

    def react(self, event: events.Event, now: float) -> list[Effect]:
        effects = self._dispatch(event, now)
        if not self.is_over():
            effects += self._record_sign_of_life(event, now) + self._end_audit(now) + self._remind(now)
            effects += self._watch_multi_step()
        return effects if self.is_over() else [*effects, *self._end_drained()]

    def deadline(self) -> float | None:
        if self.is_over():
            return None
        late = self.scheduler.deadline(self.state) if self.is_running() else None
        membership, stragglers = self.membership, self.stragglers
        return soonest(self.reminder.due, membership.probes.soonest(), stragglers.deadline(self.leases), late)

    def _dispatch(self, event: events.Event, now: float) -> list[Effect]:
        match event:
            case Received(peer=peer, message=message):
                member = self.membership.members.get(peer)
                if isinstance(message, Join):
                    return self._join(peer, message, registration.Admittance(event.key, event.signer), now)
                return self._on_message(peer, message, now) if member is None else self._on_work(member, message, now)
            case events.PeerLeft():
                return self._on_left(event, now)
            case events.StatusRequested():
                extra = {"refused": event.refused, "broken": event.broken, "standbys": list(event.standbys)}
                status = replace(self.status(now), **extra)
                return [Send(peer=event.peer, message=status)]
            case events.ServersReady():
                return self._on_servers_ready(event, now)
            case events.StandbysKnown(standbys=standbys):
                self.standbys = standbys
                changed = StandbysChanged(standbys=standbys)
                return [Send(peer=peer, message=changed) for peer in self.membership.members]
            case events.Superseded(text=text):
                return self._fail(text, FailureKind.SUPERSEDED)
            case events.DrainRequested(heir=heir):
                # An update that is under way has not been told to gather anything.
                is_late = self.phase is RunPhase.UPDATING
                self.drained, self.drained_at = f"the run was handed over to {heir}", self.round.step + is_late
                return []
            case events.SumsAcknowledged():
                return self._on_sums_acknowledged(event, now)
            case events.StepUpdated():
                return self._begin_next_round() + self._go_on(now) if event.step == self.round.step else []
            case events.StepMade():
                return self._on_step_made(event)
            case events.MultiStepLeaseEnded():
                return self._on_multi_step_ended(event, now)
            case events.MultiStepLeaseRefused():
                self.multi_step.is_possible = False
                self._leave_multi_step(self.round.step, now)
                return self._assign_leases(now)
            case events.Recomputed():
                return self._on_recomputed(event)
            case events.RoomChanged():
                return self._on_room(event, now)
            case events.ServerLost():
                return self._fail(event.text, FailureKind.SERVER_LOST)
            case events.WeightsNotFinite():
                return self._fail(event.text, FailureKind.DIVERGED)
            case events.TimePassed():
                return self._on_time_passed(now)
            case events.Interrupted():
                return self._fail("interrupted", FailureKind.INTERRUPTED)
            case _:
                assert_never(event)

    def _on_message(self, peer: bytes, message: Message, now: float) -> list[Effect]:
        """Handle what anybody may send."""
        match message:
            case CallbackDecision():
                return self._on_callbacks_decided(message, now)
            case Ping():
                return self._answer_ping(peer)
            case _:
                return []

    def _on_work(self, member: Member, message: Message, now: float) -> list[Effect]:
        """Handle what a member of the run sends."""
        match message:
            case Ready():
                return self._prepared(member, message, now)
            case Result():
                return self._on_result(member, message, now)
            case ComputeFailed():
                return self._on_compute_failed(member, message, now)
            case Diverged(work="audit"):
                is_asked = failures.is_asked(member, message, self.state)
                return self._judge(member, message.micro_batch, message, now) if is_asked else []
            case Diverged():
                found = failures.diverged(member, message, self.state)
                return [] if found is None else self._fail(found.text, found.kind)
            case Dropped():
                return self._on_dropped(member, message, now)
            case MultiStepResult():
                is_expected = self.scheduler.end_multi_step(member.rank, message.key(), now)
                return self._assign_leases(now, self._only(member)) if is_expected else []
            case _:
                return self._on_message(member.peer, message, now)

    # Workers come and go

    def _join(self, peer: bytes, join: Join, admitted: registration.Admittance, now: float) -> list[Effect]:
        conviction = self.convicted.get(identity_of(join, admitted.key))
        refused = registration.refuse(peer, join, admitted, self.membership, self.info, conviction)
        if refused:
            return refused
        if self.is_over():
            return [] if self.failure_kind in CONTINUED else [Send(peer=peer, message=self._finished())]
        if peer in self.membership.members:
            return []
        if self.phase is RunPhase.AWAITING_SERVERS:
            self.early_joins[peer] = join, admitted
            if not self.standbys and join.term == NO_TERM:
                return []
            # It would look elsewhere.
            waiting = NotLeading(state="opening", reason="the server waits for its shards")
            return [Send(peer=peer, message=waiting)]
        effects = registration.admit(peer, join, admitted, self.membership, self.state.account, self._welcome, now)
        if self.phase is RunPhase.AUDITING:
            self.state.exclude(self.membership.members.values())
        return effects

    def _welcome(self, rank: int) -> Welcome:
        return self.info.welcome(rank, shards=self.shards, offers_memory=self.offers_memory, standbys=self.standbys)

    def _on_servers_ready(self, event: events.ServersReady, now: float) -> list[Effect]:
        self.shards, self.offers_memory = event.addresses, event.shares
        self.membership.obstacle = self.membership.obstacle or event.obstacle
        self.phase = RunPhase.AWAITING_WORKERS
        early, self.early_joins = self.early_joins, {}
        return [effect for peer, join in early.items() for effect in self._join(peer, *join, now)]

    def _prepared(self, member: Member, ready: Ready, now: float) -> list[Effect]:
        if member.state is not MemberState.PREPARING:
            return []
        effects = registration.prepared(member, ready, self.membership, self.info)
        is_waiting = self.phase is RunPhase.AWAITING_WORKERS
        if is_waiting and self.membership.processes_prepared() >= self.info.options.least_workers():
            self.phase = initial_phase(self.info, self.round)
            self._begin_round(now)
        return effects + self._assign_leases(now)

    def _on_left(self, event: events.PeerLeft, now: float) -> list[Effect]:
        self.early_joins.pop(event.peer, None)
        member = self.membership.remove(event.peer)
        if member is None:
            return []
        released = self.state.release(member.rank, f"it left: {event.reason}", now)
        self.state.account.add(WorkerOut(rank=member.rank, why=event.reason))
        self.state.pending.remove(member.rank)
        self.stragglers.remove(member.rank)
        passed_on = f"; {self.round.named(released)} go to others" if released else ""
        report = Report(text=f"{member.named()} left: {event.reason}{passed_on}")
        forget = ForgetWorker(peer=member.peer, rank=member.rank)
        return [report, forget, *registration.activate_standby(self.membership, self.info), *self._assign_leases(now)]

    def _record_sign_of_life(self, event: events.Event, now: float) -> list[Effect]:
        """Record that a worker is alive: progress extends its leases, and a suspect gets work again.

        A suspect that says something again and again, but brings nothing, does not.
        """
        if not isinstance(event, Received | events.StatusRequested):
            return []
        message = event.message if isinstance(event, Received) else None
        if isinstance(message, CallbackDecision):
            return []
        member = self.membership.on_message(event.peer, now)
        if member is None:
            return []
        self.stragglers.evictions.drop(member.rank)
        if isinstance(message, events.PROGRESS) and member.rank in self.leases.held:
            self.leases.extend(member.rank, now + self._timeout_s(member.rank))
        if member.state is not MemberState.SUSPECT:
            return []
        is_needed = not self.membership.count(MemberState.READY)
        is_on_probation = self.stragglers.is_on_probation(member.rank, now)
        if isinstance(message, Ping | None) and not is_needed and is_on_probation:
            return []
        return registration.activate(member, self.membership, self.info) + self._assign_leases(now)

    def _timeout_s(self, rank: int) -> float:
        """Return how many seconds a worker may take for what it holds from now on."""
        if self.state.pending.has(rank):  # other servers are not done: the shard group watches those
            return self.info.options.lease_timeout
        return self.stragglers.timeout_s(rank, self.round.work, self.leases.held_by(rank))

    # Work is given out and comes back

    def _assign_leases(self, now: float, members: Sequence[Member] | None = None) -> list[Effect]:
        """Give out what work there is, to some of the ready members or to all."""
        if self.no_room or not self.is_running() or (self._is_drained() and self.phase is not RunPhase.AUDITING):
            return []
        return self.scheduler.assign(self.state, self.membership, now, members)

    def _on_room(self, changed: events.RoomChanged, now: float) -> list[Effect]:
        """Give out no more work, or all that has waited: the time in between counts for nobody."""
        self.no_room = changed.missing
        if self.no_room or not self.is_running():
            return []
        if not self.leases.held:
            self._begin_round(now)
        return self._assign_leases(now)

    def _only(self, member: Member) -> list[Member]:
        """Return a member if it may be given work."""
        return [member] if member.state is MemberState.READY else []

    def _on_result(self, member: Member, result: Result, now: float) -> list[Effect]:
        withdrawn = self._record_duration(member, result, now)
        times = UNKNOWN if withdrawn is None else withdrawn.times(now)
        effects, counts = self.state.on_result(member, result, has_shards=self.info.options.servers > 1, times=times)
        if not counts:
            return effects + (self._assign_leases(now, self._only(member)) if withdrawn else [])
        if result.work == "audit":
            return effects + self._judge(member, result.lo, result, now)
        return effects + self._accept(member, result, now)

    def _record_duration(self, member: Member, result: Result, now: float) -> WithdrawnLease | None:
        """Measure a result of a lease that a worker holds, or that was withdrawn, which is then returned.

        A result of anything else measures nothing: it came twice, or too late.
        """
        withdrawn = self.scheduler.past(member, result, None, now)
        if withdrawn is not None:
            return withdrawn
        node, rank = result.node(), member.rank
        if any(lease.node == node for lease in self.leases.held_by(rank)):
            is_trial = member.trial is not None
            self.scheduler.timeouts.record(rank, result.work, len(node), now, is_trial=is_trial)
        return None

    def _on_dropped(self, member: Member, dropped: Dropped, now: float) -> list[Effect]:
        """Let a worker have work again that is past a lease which was withdrawn."""
        withdrawn = self.scheduler.past(member, dropped, dropped.computed, now)
        if withdrawn is None or withdrawn.lease is None:
            return []
        node = withdrawn.lease.node
        if dropped.computed:
            part = [Node(node.lo, min(node.hi, node.lo + dropped.computed))]
            began_s, ended_s = withdrawn.times(now)
            self.state.account.record_recomputed(
                dropped.work, dropped.step, part, member.rank, OTHERS_FASTER, [began_s], ended_s
            )
        return self._assign_leases(now, self._only(member))

    def _on_sums_acknowledged(self, event: events.SumsAcknowledged, now: float) -> list[Effect]:
        """Count a result of which all servers have the sums, unless another worker was faster."""
        member, result = self.membership.by_rank(event.rank), self.state.pending.acknowledge(event.rank, event.node)
        if member is None or result is None:
            return []
        if self.state.is_needed(result):
            return self._accept(member, result, now)
        self.state.refuse(member, result)
        return self._assign_leases(now)

    def _accept(self, member: Member, result: Result, now: float) -> list[Effect]:
        """Count a result whose sums are, or will be at once, in the tree."""
        (ended, is_freed), progress = self.state.accept(member, result, now), self.progress
        withdrawn = self._withdraw(ended, now)
        if result.work == "train":
            progress.compute_s += self.membership.credit(member, result.count // self.info.targets, result.compute_s)
        if self.leases.is_complete():
            return [*withdrawn, *self._complete_round(now), *self._assign_leases(now)]
        return [*withdrawn, *self._assign_leases(now, None if is_freed else self._only(member))]

    def _withdraw(self, ended: Sequence[HeldLease], now: float) -> list[Effect]:
        """Tell workers that others were faster."""
        effects: list[Effect] = []
        for lease in ended:
            member = self.membership.by_rank(lease.rank)
            assert member is not None  # what a member held was released when it left
            effects.append(Send(peer=member.peer, message=self.scheduler.withdraw(self.state, lease, now)))
        return effects

    def _on_compute_failed(self, member: Member, failed: ComputeFailed, now: float) -> list[Effect]:
        found = failures.lease_failed(member, failed, self.state)
        if isinstance(found, failures.Failure):
            return self._fail(found.text, found.kind)
        return [] if found is None else [found, *self._assign_leases(now)]

    # Rounds follow one another

    def _open(self, following: Round) -> None:
        audit = Audit.of(following, self.info.options.audit, self.info.job.seed)
        self.state = RoundState(following, audit, self.info.signed_run, self.progress.round_started)

    def _begin_round(self, now: float) -> None:
        """Count the time of the round at hand from now on: there was something to wait for."""
        self.progress.begin_round(now)
        self.state.began = now

    def _complete_round(self, now: float) -> list[Effect]:
        if self.round.work == "train" and self.state.audit.is_due():
            self.state.begin_audit(self.membership.members.values())
            self.phase = RunPhase.AUDITING
            return []
        tally, account = self.state.tallies.total(), self.state.account
        if self.round.work == "train":
            self.last_ranks = frozenset(share.rank for share in account.shares)
            self.progress.end_step(tally, now, self.membership.end_step())
            self.progress.begin_round(now)
            self.phase = RunPhase.UPDATING
            return [UpdateWeights(step=self.round.step, tally=tally, account=account)]
        effects: list[Effect] = []
        if self.round.work == "validate":
            self.progress.end_validation(tally)
        else:
            number = self.info.plan.epoch_of(self.round.step - 1)
            effects.append(RecordEpoch(epoch=self.progress.end_epoch(number, tally, now), account=account))
        self.progress.begin_round(now)
        return effects + self._begin_next_round()

    def _begin_next_round(self) -> list[Effect]:
        following = next_round(self.info.job, self.info.plan, self.round, self.progress.history)
        if following is None:
            return self._finish()
        done, account = self.round, self.state.account
        self._open(following)
        if done.work == "validate":
            self.state.account.merge(account)
        self.phase = initial_phase(self.info, following)
        return []

    # A team makes steps by itself

    def _go_on(self, now: float) -> list[Effect]:
        """Let a team make the next steps by itself if it can; otherwise lease the round that has begun."""
        if self.phase is RunPhase.TRAINING and not self.no_room and not self.drained:
            self.leased_steps = self.multi_step.next(self.info, self.round, self.membership, self.scheduler)
        if self.leased_steps is None:
            return self._assign_leases(now)
        self.phase = RunPhase.MULTI_STEP
        return [self.leased_steps]

    def _on_step_made(self, made: events.StepMade) -> list[Effect]:
        """Count a step as if its results had come."""
        self.last_ranks = frozenset({made.rank})
        micro_batches, account, tally = self.round.micro_batches, self.state.account, made.tally
        member = self.membership.by_rank(made.rank)
        assert tally.count == self.info.job.global_batch * self.info.targets
        for part in made.parts:
            losses = made.losses[4 * part.node.lo : 4 * part.node.hi]
            process = None if member is not None and member.processes == 1 else part.process
            account.record_accepted(part.node, made.rank, losses, part.began_s, part.ended_s, process)
        if member is not None:
            self.scheduler.timeouts.add(made.rank, "train", made.round_s / micro_batches)
            samples = tally.count // self.info.targets
            self.progress.compute_s += self.membership.credit(member, samples, *made.compute_s())
        ended = self.progress.round_started + made.round_s
        self.progress.end_step(tally, ended, self.membership.end_step())
        self.progress.begin_round(ended)
        self.state.account, self.state.round = Account(micro_batches), Round("train", made.step + 1, micro_batches)
        return [RecordStep(account=account, made=made)]

    def _watch_multi_step(self) -> list[Effect]:
        """End the multi-step lease once another worker can work too, the one that has it is not to, or nobody is."""
        steps = self.leased_steps
        if self.phase is not RunPhase.MULTI_STEP or steps is None or self.is_ending:
            return []
        is_alone = [member.rank for member in self.membership.ready()] == [steps.rank]
        if is_alone and not self.no_room and not self.drained:
            return []
        self.is_ending = True
        return [WithdrawSteps()]

    def _on_multi_step_ended(self, event: events.MultiStepLeaseEnded, now: float) -> list[Effect]:
        """Continue step by step; a team that has not answered stands still if it was late."""
        assert self.leased_steps is not None  # it is completed
        rank = self.leased_steps.rank
        self.multi_step.on_completed(self.leased_steps.first, event.steps, is_cut=event.is_cut)
        self._leave_multi_step(event.steps, now)
        if event.is_silent and event.lease is not None and self.membership.by_rank(rank) is not None:
            self.scheduler.await_multi_step(rank, event.lease, now, is_late=event.is_cut)
        return self._assign_leases(now)

    def _leave_multi_step(self, steps: int, now: float) -> None:
        """Continue step by step."""
        self.leased_steps, self.is_ending, self.phase, account = None, False, RunPhase.TRAINING, self.state.account
        # The team has measured the time of its steps by its own clock.
        self.progress.begin_round(min(self.progress.round_started, now))
        self._open(Round("train", steps, self.round.micro_batches))
        # What has happened since the last step was made.
        self.state.account.merge(account)

    def _on_callbacks_decided(self, decision: CallbackDecision, now: float) -> list[Effect]:
        """Begin the epoch before which callbacks were asked, or end the run."""
        if decision.epoch != self.progress.history[-1].epoch:
            return []
        if decision.stops:
            return self._finish()
        self.phase = PHASES[self.round.work]
        self._begin_round(now)
        return self._assign_leases(now)

    # Some of a step is computed again

    def _judge(self, member: Member, micro_batch: int, found: Result | Diverged, now: float) -> list[Effect]:
        """Compare what another worker has found; it is an error of ours to ask one twice."""
        audit = self.state.audit
        if audit.has_heard(micro_batch, member):
            return []
        conviction = audit.add(micro_batch, AuditFinding.of(member, found))
        if conviction is not None:
            return self._convict(conviction)
        if audit.is_disputed(micro_batch):
            self.state.dispute(member, micro_batch, self.membership.members.values())
            text = f"{audit.dispute(micro_batch)}; another worker, or the server, computes it too"
            return [Report(text=text), *self._assign_leases(now)]
        assert isinstance(found, Result)  # the first one's was
        return self._accept_audited(member, found, now)

    def _on_recomputed(self, found: events.Recomputed) -> list[Effect]:
        """Believe the server; without its opinion, the run cannot go on: one of them changes the weights."""
        audit = self.state.audit
        if not self.state.is_open_audit(found.step, found.micro_batch):
            return []
        conviction = audit.decide(found.micro_batch, found.found) if found.found else None
        if conviction is not None:
            return self._convict(conviction)
        text = (
            f"{audit.dispute(found.micro_batch)}; nobody is left who could decide which of them computes wrongly, and "
            "the step was not applied: find out with `lockstep verify`, or by leaving out one at a time, and resume "
            "from the last checkpoint"
        )
        return self._fail(text, FailureKind.AUDIT)

    def _convict(self, conviction: Conviction) -> list[Effect]:
        """Evict who is wrong for good; end, so that the run is resumed from before its results."""
        self.phase, self.failure = RunPhase.FAILED, conviction.text()
        self.failure_kind = FailureKind.AUDIT if self.info.options.audit_ends else FailureKind.ROLLBACK
        wrong = {finding.identity for finding in conviction.wrong}
        refusal = registration.refused(RefusalKind.CONVICTED, registration.convicted_text(self.failure))
        # The others join again in a moment, when the run is resumed.
        back = Eviction(reason="the run goes back to a checkpoint, since a worker has computed wrongly")
        others = self._finished() if self.info.options.audit_ends else back
        members = self.membership.members.items()
        effects: list[Effect] = [
            Send(peer=peer, message=refusal if one.identity in wrong else others) for peer, one in members
        ]
        return [*effects, Finish(failure=self.failure, kind=self.failure_kind, conviction=conviction)]

    def _accept_audited(self, member: Member, result: Result, now: float) -> list[Effect]:
        withdrawn = self._withdraw(self.state.accept_audited(member, result), now)
        self.progress.audited += 1
        self.membership.credit_audit(member, result.compute_s)
        return [*withdrawn, *self._assign_leases(now)]

    def _end_audit(self, now: float) -> list[Effect]:
        """Complete the step once everything is audited for which there is a worker: the audit waits for nobody."""
        if self.phase is not RunPhase.AUDITING:
            return []
        ready = [member.rank for member in self.membership.ready()]
        skipped, step = self.state.skip_unassignable(ready), self.round.step
        is_first, self.progress.unaudited = not self.progress.unaudited, self.progress.unaudited + len(skipped)
        text = f"cannot audit {self.round.named(skipped)} or others now: no other worker is ready; the run continues"
        reports: list[Effect] = [Report(text=text)] if skipped and is_first else []
        reports += [Recompute(step=step, micro_batch=one) for one in self.state.for_server(ready)]
        if not self.leases.is_complete():
            return reports
        self.state.end_audit()
        return [*reports, *self._complete_round(now)]

    # The run ends

    def _finish(self) -> list[Effect]:
        self.phase = RunPhase.FINISHED
        return [*self._dismiss(), Finish()]

    def _fail(self, failure: str, kind: FailureKind) -> list[Effect]:
        self.phase, self.failure, self.failure_kind = RunPhase.FAILED, failure, kind
        dismissed = [] if kind in CONTINUED else self._dismiss()
        return [*dismissed, Finish(failure=failure, kind=kind)]

    def _is_drained(self) -> bool:
        """Tell whether no work is to be leased any more.

        If there are several servers, their slices are gathered with the next update, which is still made.
        """
        return bool(self.drained) and (self.info.options.servers == 1 or self.round.step > self.drained_at)

    def _end_drained(self) -> list[Effect]:
        """End here, to be continued by a standby, once nobody computes anything of the step at hand."""
        if not self._is_drained():
            return []
        is_busy = self.phase in (RunPhase.UPDATING, RunPhase.MULTI_STEP, RunPhase.AUDITING) or self.leases.held
        return [] if is_busy else self._fail(self.drained, FailureKind.HANDED_OVER)

    def electors(self) -> list[int]:
        """Return the ranks of those that decide that this server is gone: the workers of the last step.

        Those on its own machine are gone with it, and do not count if there are others.
        """
        ready = self.membership.ready()
        last = [member for member in ready if member.rank in self.last_ranks] or ready
        away = [member for member in last if not self.info.machine or member.join.machine != self.info.machine]
        return [member.rank for member in away or last]

    def _answer_ping(self, peer: bytes) -> list[Effect]:
        if not self.is_over():
            return [Send(peer=peer, message=Ping())]
        return [] if self.failure_kind in CONTINUED else [Send(peer=peer, message=self._finished())]

    def _dismiss(self) -> list[Effect]:
        peers = [*self.membership.members, *self.early_joins]
        return [Send(peer=peer, message=self._finished()) for peer in peers]

    def _finished(self) -> Finished:
        return Finished(reason=shortened(self.failure), kind=self.failure_kind)

    # Time passes

    def _on_time_passed(self, now: float) -> list[Effect]:
        state, membership, stragglers = self.state, self.membership, self.stragglers
        late = failures.expire_leases(state, membership, stragglers, now)
        evicted = failures.evict(state, membership, stragglers, now)
        probes = [Send(peer=member.peer, message=Ping()) for member in membership.to_probe(now)]
        assigned = [*registration.activate_standby(membership, self.info), *self._assign_leases(now)]
        return [*(failures.report_late(one, state, stragglers) for one in late), *evicted, *probes, *assigned]

    def _remind(self, now: float) -> list[Effect]:
        text = self.no_room or waiting_text(self.phase, self.membership, self.info)
        return [Report(text=text, is_reminder=True)] if self.reminder.is_due(now, is_waiting=bool(text)) else []

    def status(self, now: float) -> Status:
        """Return the status of the run."""
        members = self.membership.members.values()
        busy = self.leases.held.keys() if self.leased_steps is None else {self.leased_steps.rank}
        workers = [member.status(is_busy=member.rank in busy) for member in members]
        # Who asks need not know how a step is made.
        phase = RunPhase.TRAINING if self.phase is RunPhase.MULTI_STEP else self.phase
        status = status_of(self.info, self.progress, phase, self.round, now, workers, self.failure)
        return replace(status, phase=NO_ROOM) if self.no_room and not self.is_over() else status

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        self.membership.validate(self.info.job.micro_batches)
        ready = {member.rank for member in self.membership.ready()}
        assert self.leases.held.keys() <= ready, "a worker holds leases that is not ready"
        assert self.is_running() or self.is_over() or not self.leases.held
        if self.is_running() and not self.drained:
            assert not self.leases.is_complete()
            if self.no_room:
                return
            self.state.validate(sorted(rank for rank in ready if not self.scheduler.withdrawals.has_any(rank)))
            assert ready or self.reminder.due is not None, "nobody works, and nobody is reminded"


def initial_phase(info: RunInfo, at: Round) -> RunPhase:
    """Return the phase in which a round begins: callbacks are asked before each epoch but the first.

    Before it, and not after the last: so a run that resumes from a checkpoint between two epochs asks again.
    """
    begins_epoch = at.work == "train" and at.step > 0 and at.step % info.plan.steps_per_epoch == 0
    return RunPhase.PAUSED if info.options.pause and begins_epoch else PHASES[at.work]
