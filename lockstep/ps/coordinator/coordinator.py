"""The coordinator decides which worker computes what, and when a step is complete. No socket, clock, file or array.

Its decisions never change the result, only the worker that computes it: the sums are added over one fixed tree. Here
are the rounds, their leases and the members; whatever is optional plugs in through `Hooks`: see `parts/`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Protocol

from lockstep.common.errors import FailureKind
from lockstep.common.protocol.messages import (
    ComputeFailed,
    Diverged,
    Dropped,
    Eviction,
    Join,
    Message,
    Ping,
    Ready,
    Result,
    Status,
    Work,
)
from lockstep.common.statemachine.machine import Machine, PeerLeft, Received, Report, ReportKind, Send, kind_of, soonest
from lockstep.ps.coordinator import events, failures
from lockstep.ps.coordinator.admission import Admission
from lockstep.ps.coordinator.effects import Effect, Finish, RecordEpoch, UpdateWeights
from lockstep.ps.coordinator.findings import Conviction
from lockstep.ps.coordinator.membership import Member, Membership, MemberState
from lockstep.ps.coordinator.scheduling.lease_table import LeaseTable
from lockstep.ps.coordinator.scheduling.round_state import UNKNOWN, RoundState
from lockstep.ps.coordinator.scheduling.scheduler import Scheduler
from lockstep.ps.coordinator.scheduling.stragglers import LeaseTimeouts, StragglerMonitor
from lockstep.ps.coordinator.status import Reminder, status_of, waiting_text
from lockstep.ps.coordinator.transitions import PHASES, TRANSITIONS, RunPhase
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round, next_round
from lockstep.ps.run.progress import Progress

#: The answer to a peer that sends what only a member may.
STRANGER = "the server does not know this worker: it was silent for too long, or the server was restarted"

#: Makes a part of a coordinator, which plugs itself into the hooks.
Plug = Callable[["Coordinator"], object]


class RoundWatch(Protocol):
    """Follows each round."""

    def opened(self, at: Round) -> frozenset[int]:
        """Return which micro-batches of a round that begins are leased alone, and digested."""

    def accepted(self, member: Member, result: Result) -> None:
        """Record a result of a training step that counts."""

    def completed(self) -> bool:
        """Tell whether the round, all of whose results are there, goes on under this watch before it is complete."""


@dataclass
class Hooks:
    """The hooks of parts; all of these are empty in a coordinator without parts."""

    #: By the class of an event, or of the message that was received, the part that handles it.
    events: dict[type, Callable[[Any, float], list[Effect]]] = field(default_factory=dict)
    #: By the kind of work that a part has leased, where its answers go.
    answers: dict[Work, Callable[[Member, Result | Diverged, float], list[Effect]]] = field(default_factory=dict)
    rounds: list[RoundWatch] = field(default_factory=list)
    #: Each returns in which phase a round begins, or None if that is not changed.
    begins: list[Callable[[Round, float], RunPhase | None]] = field(default_factory=list)
    #: Each tells whether no work is to be leased now.
    holds: list[Callable[[], bool]] = field(default_factory=list)
    #: Each returns what the run waits for, empty if it does not.
    waits: list[Callable[[], str]] = field(default_factory=list)
    #: Called after each event, unless the run is over.
    after: list[Callable[[float], list[Effect]]] = field(default_factory=list)
    #: Each returns when a part has something to do although nothing happens.
    deadlines: list[Callable[[], float | None]] = field(default_factory=list)
    #: Called before the run ends for a reason: each ends its work, and keeps the results.
    fails: list[Callable[[], None]] = field(default_factory=list)
    #: Each returns a status with what the part adds to it.
    statuses: list[Callable[[Status], Status]] = field(default_factory=list)

    def is_held(self) -> bool:
        """Tell whether a part wants that no work is leased now."""
        return any(holds() for holds in self.holds)

    def phase_of(self, at: Round, now: float) -> RunPhase:
        """Return the phase in which a round begins: that of its work, unless a part has another."""
        return next((phase for begins in self.begins if (phase := begins(at, now)) is not None), PHASES[at.work])

    def deadline(self) -> float | None:
        """Return when a part has something to do although nothing happens."""
        return soonest(*(deadline() for deadline in self.deadlines))

    def on_failure(self) -> None:
        """Let the parts end their work, and keep its results."""
        for keep in self.fails:
            keep()

    def changed(self, status: Status) -> Status:
        """Return a status with what the parts add to it."""
        for change in self.statuses:
            status = change(status)
        return status


@dataclass
class Coordinator(Machine[events.Event, Effect]):
    """The state of a run, and how it proceeds."""

    transitions = TRANSITIONS
    info: RunInfo
    plugs: InitVar[Sequence[Plug]] = ()
    progress: Progress = field(default_factory=Progress)
    #: The round to begin with if a run is resumed; otherwise the plan's first.
    start: Round | None = None
    convicted: InitVar[Mapping[str, str] | None] = None
    phase: RunPhase = RunPhase.AWAITING_WORKERS
    membership: Membership = field(default_factory=Membership)
    admission: Admission = field(init=False)
    reminder: Reminder = field(default_factory=Reminder)
    #: The end of the run, once it is written: None before.
    ended: Finish | None = None
    hooks: Hooks = field(default_factory=Hooks)
    parts: Sequence[object] = ()
    state: RoundState = field(init=False)
    scheduler: Scheduler = field(init=False)
    stragglers: StragglerMonitor = field(init=False)

    def __post_init__(self, plugs: Sequence[Plug], convicted: Mapping[str, str] | None) -> None:
        options = self.info.options
        self.admission = Admission(self.info, self.membership, convicted or {})
        self.stragglers = StragglerMonitor(self.membership, LeaseTimeouts(options.lease_timeout))
        timeouts, withdrawals = self.stragglers.timeouts, self.stragglers.withdrawals
        self.scheduler = Scheduler(self.membership, timeouts, withdrawals)
        self.progress.targets, self.progress.guess = self.info.targets, self.info.guess
        self.progress.metrics = self.info.metrics
        self.parts = [plug(self) for plug in plugs]
        self.open_round(self.start or self.info.plan.first())

    @property
    def round(self) -> Round:
        """The current round, or the last one."""
        return self.state.round

    @property
    def leases(self) -> LeaseTable:
        """The leases of the current round."""
        return self.state.leases

    def is_running(self) -> bool:
        """Tell whether micro-batches are being computed."""
        return self.phase in PHASES.values()

    def is_over(self) -> bool:
        """Tell whether the run has ended, well or not."""
        return self.phase in (RunPhase.FINISHED, RunPhase.FAILED)

    def _may_lease(self) -> bool:
        return self.is_running() and not self.hooks.is_held()

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        self.stragglers.check(now, self.leases)
        if isinstance(event, Received) and self._is_stranger(event) and self.ended is None:
            # Before the table, which is of the run's phases: this process takes no part in the run.
            return [Send(peer=event.peer, message=Eviction(reason=STRANGER))]
        return self.obey(event, now)

    def _is_stranger(self, event: Received) -> bool:
        return isinstance(event.message, events.FROM_MEMBERS) and event.peer not in self.membership.members

    def react(self, event: events.Event, now: float) -> list[Effect]:
        effects = self._dispatch(event, now)
        if not self.is_over():
            effects += self._record_sign_of_life(event, now)
            waiting = waiting_text(self.phase, self.membership, self.info, self.hooks.waits)
            if self.reminder.is_due(now, is_waiting=bool(waiting)):
                effects.append(Report(text=waiting, kind=ReportKind.REMINDER))
        for after in self.hooks.after:
            effects += [] if self.is_over() else after(now)
        return effects

    def deadline(self) -> float | None:
        if self.is_over():
            return None
        late = self.scheduler.deadline(self.state) if self._may_lease() else None
        membership, stragglers, parts = self.membership, self.stragglers, self.hooks.deadline()
        return soonest(parts, self.reminder.due, membership.probes.soonest(), stragglers.deadline(self.leases), late)

    def _dispatch(self, event: events.Event, now: float) -> list[Effect]:
        if (handle := self.hooks.events.get(kind_of(event))) is not None:
            return handle(event, now)
        match event:
            case Received(message=Join()):
                return self.join(event, now)
            case Received(peer=peer, message=Ping()):
                return [Send(peer=peer, message=Ping())] if self.ended is None else self._farewell(peer)
            case Received(peer=peer, message=message):
                member = self.membership.members.get(peer)
                return [] if member is None else self._on_work(member, message, now)
            case PeerLeft():
                return self._on_left(event.peer, event.reason, now)
            case events.StepUpdated():
                is_current = event.step == self.round.step
                return [*self._begin_next_round(now), *self.assign_leases(now)] if is_current else []
            case events.PartFailed():
                return self.fail(event.text, event.kind)
            case events.TimePassed():
                return self._on_time_passed(now)
            case _:
                return []  # of a part that this run does not have

    def _on_work(self, member: Member, message: Message, now: float) -> list[Effect]:
        """Handle what a member of the run sends."""
        match message:
            case Ready() if member.state is MemberState.PREPARING:
                return self._prepared(member, message, now)
            case Result():
                return self._on_result(member, message, now)
            case ComputeFailed():
                return self._on_compute_failed(member, message, now)
            case Diverged() if failures.is_asked(member, message, self.state):
                return self._on_diverged(member, message, now)
            case Dropped():
                is_past = self.scheduler.drop(self.state, member, message, now)
                return self.assign_leases(now, member) if is_past else []
            case _:
                return []

    # Workers come and go

    def join(self, event: Received, now: float) -> list[Effect]:
        """Let a worker in, or return why not."""
        join = event.message
        assert isinstance(join, Join)
        if refused := self.admission.refuse(event, join):
            return refused
        if self.is_over():
            return self._farewell(event.peer)
        if event.peer in self.membership.members:
            return []
        if self.phase is RunPhase.AWAITING_SERVERS:
            self.admission.wait(event)
            return []
        # It may have lost its welcome with the connection before this one.
        twin = self.membership.by_incarnation(join.incarnation)
        left = [] if twin is None else self._on_left(twin.peer, "it connected again", now)
        return [*left, *self.admission.admit(event, join, self.state.account, now)]

    def _prepared(self, member: Member, ready: Ready, now: float) -> list[Effect]:
        effects = self.admission.prepared(member, ready)
        is_waiting = self.phase is RunPhase.AWAITING_WORKERS
        if is_waiting and self.membership.processes_prepared() >= self.info.options.least_workers():
            self.phase = self.hooks.phase_of(self.round, now)
            self.begin_round(now)
        return effects + self.assign_leases(now)

    def _on_left(self, peer: bytes, reason: str, now: float) -> list[Effect]:
        self.admission.early.pop(peer, None)
        member = self.membership.remove(peer)
        if member is None:
            return []
        left = self.stragglers.left(member, reason, self.state, now)
        return [*left, *self.admission.activate_spares(), *self.assign_leases(now)]

    def _record_sign_of_life(self, event: events.Event, now: float) -> list[Effect]:
        """Record that a worker is alive; a suspect may get work again."""
        if not isinstance(event, Received):
            return []
        member = self.membership.on_message(event.peer, now)
        if member is None or not self.stragglers.is_back(member, event.message, self.state, now):
            return []
        return self.admission.activate(member) + self.assign_leases(now)

    # Work is given out and comes back

    def assign_leases(self, now: float, only: Member | None = None) -> list[Effect]:
        """Lease what work there is, to one member if it is ready, or to all that are."""
        if not self._may_lease():
            return []
        members = None if only is None else [only] if only.state is MemberState.READY else []
        return self.scheduler.assign(self.state, now, members)

    def _on_result(self, member: Member, result: Result, now: float) -> list[Effect]:
        withdrawn = self.scheduler.measure(member, result, self.leases.held_by(member.rank), now)
        times = UNKNOWN if withdrawn is None else withdrawn.times(now)
        if not self.state.on_result(member, result, has_shards=self.info.options.servers > 1, times=times):
            return self.assign_leases(now, member) if withdrawn else []
        answer = self.hooks.answers.get(result.work, self.accept)
        return answer(member, result, now)

    def accept(self, member: Member, result: Result, now: float) -> list[Effect]:
        """Count a result whose sums are, or will be at once, in the tree."""
        (ended, is_freed), progress = self.state.accept(member, result, now), self.progress
        withdrawn = self.scheduler.withdraw(self.state, ended, now)
        if result.work == "train":
            for watch in self.hooks.rounds:
                watch.accepted(member, result)
            progress.compute_s += self.membership.credit(member, result.count // self.info.targets, result.compute_s)
        if self.leases.is_complete():
            return [*withdrawn, *self.complete_round(now), *self.assign_leases(now)]
        return [*withdrawn, *self.assign_leases(now, None if is_freed else member)]

    def _on_compute_failed(self, member: Member, failed: ComputeFailed, now: float) -> list[Effect]:
        found = failures.lease_failed(member, failed, self.state)
        if isinstance(found, events.PartFailed):
            return self.fail(found.text, found.kind)
        return [] if found is None else [found, *self.assign_leases(now)]

    def _on_diverged(self, member: Member, found: Diverged, now: float) -> list[Effect]:
        if (answer := self.hooks.answers.get(self.round.work)) is not None:
            return answer(member, found, now)
        return self.fail(failures.diverged_by(member, found, self.round), FailureKind.DIVERGED)

    # Rounds follow one another

    def open_round(self, following: Round) -> None:
        """Begin a round of which nothing is leased."""
        single = frozenset[int]().union(*(watch.opened(following) for watch in self.hooks.rounds))
        began, numbers = self.progress.round_started, self.scheduler.numbers
        self.state = RoundState(following, single, began, numbers)

    def begin_round(self, now: float) -> None:
        """Count the time of the current round from now on: there was something to wait for."""
        self.progress.begin_round(now)
        self.state.began = now

    def complete_round(self, now: float) -> list[Effect]:
        """Continue after the last result of a round."""
        if any(watch.completed() for watch in self.hooks.rounds):
            return []
        at, tally, account = self.round, self.state.tallies.total(), self.state.account
        if at.work == "train":
            self.progress.end_step(tally, now, self.membership.end_step())
            self.progress.begin_round(now)
            self.phase = RunPhase.UPDATING
            return [UpdateWeights(step=at.step, tally=tally, account=account)]
        ended: list[Effect] = []
        if at.work == "validate":
            self.progress.end_validation(tally)
        else:
            epoch = self.progress.end_epoch(self.info.plan.epoch_of(at.step - 1), tally, now)
            ended = [RecordEpoch(epoch=epoch, account=account)]
        self.progress.begin_round(now)
        return ended + self._begin_next_round(now)

    def _begin_next_round(self, now: float) -> list[Effect]:
        following = next_round(self.info.job, self.info.plan, self.round, self.progress.history)
        if following is None:
            return self.finish()
        done, account = self.round, self.state.account
        self.open_round(following)
        if done.work == "validate":
            self.state.account.merge(account)
        self.phase = self.hooks.phase_of(following, now)
        return []

    # The run ends

    def finish(self) -> list[Effect]:
        """End the run well; workers are dismissed once its result is written."""
        self.phase = RunPhase.FINISHED
        return [Finish()]

    def fail(self, failure: str, kind: FailureKind, conviction: Conviction | None = None) -> list[Effect]:
        """End the run, for a reason."""
        self.hooks.on_failure()
        self.phase = RunPhase.FAILED
        return [Finish(failure=failure, kind=kind, conviction=conviction)]

    def dismiss(self, ended: Finish) -> list[Effect]:
        """Let workers go: the end of the run is written, or cannot be written."""
        self.ended = ended
        return [send for peer in (*self.membership.members, *self.admission.early) for send in self._farewell(peer)]

    def _farewell(self, peer: bytes) -> list[Effect]:
        """Return what a peer is sent at the end: nothing before that is written, or if the run continues."""
        message = None if self.ended is None else self.ended.farewell()
        return [] if message is None else [Send(peer=peer, message=message)]

    # Time passes

    def _on_time_passed(self, now: float) -> list[Effect]:
        state, stragglers = self.state, self.stragglers
        late, evicted = stragglers.expire(state, now), stragglers.evict(state, now)
        probes = [Send(peer=member.peer, message=Ping()) for member in self.membership.to_probe(now)]
        assigned = [*self.admission.activate_spares(), *self.assign_leases(now)]
        return [*(stragglers.report(one, state) for one in late), *evicted, *probes, *assigned]

    def status(self, now: float) -> Status:
        """Return the status of the run."""
        workers = [each.status(is_busy=each.rank in self.leases.held) for each in self.membership.members.values()]
        failure = "" if self.ended is None else self.ended.failure
        waiting = "" if failure else waiting_text(self.phase, self.membership, self.info, self.hooks.waits)
        status = status_of(self.info, self.progress, self.phase, self.round, now, workers, failure, waiting)
        return self.hooks.changed(status)

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        self.membership.validate(self.info.job.micro_batches)
        ready = {member.rank for member in self.membership.ready()}
        assert self.is_over() or self.leases.held.keys() <= ready, "a worker holds leases that is not ready"
        assert self.is_running() or self.is_over() or not self.leases.held
        if self._may_lease():
            assert not self.leases.is_complete()
            self.state.validate(sorted(rank for rank in ready if not self.scheduler.withdrawals.has_any(rank)))
            assert ready or self.reminder.due is not None, "no worker has work, and no reminder is due"
