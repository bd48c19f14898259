"""Decides when a team makes steps by itself, and which steps. Pure.

A team that computes all of each step, in the server's own memory, can do without the server between two steps: its
processes see in their own memory when all sums are there, and when all slices of the update are made. The server leaves
it alone as long as nothing else is to be decided.
"""

from dataclasses import dataclass

from msgspec.structs import replace

from lockstep.common.protocol.messages import Dropped, MultiStepLease, Status, Withdrawal
from lockstep.common.statemachine.machine import Received, Send, soonest
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect
from lockstep.ps.coordinator.membership import Member, Membership, MemberState
from lockstep.ps.coordinator.parts.team_lease import STUCK, StepMade, StepsRefusal, TeamLease, TeamSteps
from lockstep.ps.coordinator.scheduling.scheduler import Scheduler
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import Account
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round

#: Least steps of a multi-step lease, and the steps of a run before the first: in some of these workers record the
#: model's calls, and it becomes known how long a step takes.
LEAST_STEPS, FIRST_STEPS = 4, 12

#: Steps after a multi-step lease that was cut until the next, at first and at most: twice as many after each.
#: Multi-step leases of so many times the pause show that whatever cut the last one has passed.
PAUSE, LONGEST_PAUSE, PASSED = 32, 1024, 4


@dataclass
class MultiStepPlan:
    """The plan of the next multi-step lease."""

    #: The first step that may be in one.
    earliest: int
    pause: int = PAUSE
    #: Steps in multi-step leases since one was cut.
    lasted: int = 0
    #: False once the server has refused one: then there can be none in this run.
    is_possible: bool = True

    def on_completed(self, first: int, steps: int, *, is_cut: bool) -> None:
        """Record that a multi-step lease from `first` on has ended after so many steps of the run.

        One that was cut is not tried again at once.
        """
        self.lasted += steps - first
        if self.lasted >= PASSED * self.pause:
            self.pause = PAUSE
        if is_cut:
            self.earliest, self.lasted = steps + self.pause, 0
            self.pause = min(2 * self.pause, LONGEST_PAUSE)

    def next(self, info: RunInfo, at: Round, membership: Membership, scheduler: Scheduler) -> tuple[Member, int] | None:
        """Return the team that may make the steps from this round on, and the first that it must not.

        None if the round is to be leased.
        """
        is_first = at.step % info.plan.steps_per_epoch == 0  # callbacks, or the results of an evaluation, come before
        if not self.is_possible or at.work != "train" or at.step < self.earliest or is_first:
            return None
        # The last step of an epoch may be shorter, and an evaluation follows it.
        last = min((at.step // info.plan.steps_per_epoch + 1) * info.plan.steps_per_epoch, info.plan.total_steps) - 1
        team = _team_alone(membership, scheduler) if may_lease_steps(info) else None
        return None if team is None or last - at.step < LEAST_STEPS else (team, last)


def may_lease_steps(info: RunInfo) -> bool:
    """Tell whether a team that shares the server's memory has all that it needs for a step."""
    return info.options.servers == 1 and not info.options.audit and info.manifest is None


def _team_alone(membership: Membership, scheduler: Scheduler) -> Member | None:
    """Return the worker that is ready, if it alone is, shares memory as a team, and has no other work."""
    ready = membership.ready()
    if len(ready) != 1 or not ready[0].has_team or not scheduler.timeouts.is_known("train"):
        return None
    return None if scheduler.withdrawals.has_any(ready[0].rank) else ready[0]


class MultiStep:
    """Lets a team make steps by itself, whose results never come here."""

    def __init__(self, core: Coordinator, *, first_steps: int = FIRST_STEPS) -> None:
        self._core = core
        self.plan = MultiStepPlan(earliest=core.progress.steps + first_steps)
        #: The server that has the memory, None in a run without one.
        self._server: TeamSteps | None = None
        #: The current lease, None while the run continues step by step; and whether the team has been sent it.
        self.lease: TeamLease | None = None
        self.is_sent = False
        #: When a checkpoint is due, for which the lease is to end.
        self._until: float | None = None
        hooks = core.hooks
        hooks.events[Dropped] = self._on_dropped
        hooks.begins.append(self._phase_of)
        hooks.after.append(self._watch)
        hooks.deadlines.append(self._deadline)
        hooks.waits.append(lambda: STUCK if self.lease is not None and self.lease.is_stuck else "")
        hooks.fails.append(self._interrupt)
        hooks.statuses.append(self._shown)

    def serve(self, server: TeamSteps) -> None:
        """Let teams make their steps there."""
        self._server = server

    def _phase_of(self, at: Round, now: float) -> RunPhase | None:
        """Let a team make the steps from this one on if it can."""
        core = self._core
        following = self.plan.next(core.info, at, core.membership, core.scheduler)
        if self._server is None or following is None or core.hooks.is_held():
            return None
        team, last = following
        opened = self._open(self._server, team, at.step, last, now)
        if isinstance(opened, StepsRefusal):
            self.plan.is_possible = opened is not StepsRefusal.NEVER
            self.plan.on_completed(at.step, at.step, is_cut=opened is StepsRefusal.NO_ROOM)
            return None
        self.lease, self.is_sent = opened, False
        return RunPhase.MULTI_STEP

    def _open(self, server: TeamSteps, team: Member, first: int, last: int, now: float) -> TeamLease | StepsRefusal:
        core = self._core
        before, self._until = server.bounds()
        last = last if before is None else min(last, before)
        if last - first < LEAST_STEPS or (self._until is not None and now >= self._until):
            return StepsRefusal.NOT_NOW
        number, incarnation = next(core.scheduler.numbers), team.join.incarnation
        asked = MultiStepLease(number=number, incarnation=incarnation, first=first, last=last, reads=0)
        memory = server.open(team.rank, asked)
        if isinstance(memory, StepsRefusal):
            return memory
        step_s = core.round.micro_batches * core.scheduler.timeouts.expected_s(team.rank, "train")
        return TeamLease(
            memory=memory,
            count=lambda made: self._count(server, made),
            rank=team.rank,
            step_s=step_s,
            advanced=now,
        )

    def _to(self, rank: int, message: MultiStepLease | Withdrawal) -> list[Effect]:
        team = self._core.membership.by_rank(rank)
        return [] if team is None else [Send(peer=team.peer, message=message)]

    def _deadline(self) -> float | None:
        lease = self.lease
        if lease is None:
            return None
        return lease.due if lease.is_ending else soonest(lease.due, self._until)

    def _watch(self, now: float) -> list[Effect]:
        """Follow the lease; end it once another worker can work too, or its own is gone or is not to work."""
        lease, core = self.lease, self._core
        if lease is None:
            return []
        if not self.is_sent:
            self.is_sent = True
            return self._to(lease.rank, lease.memory.lease)
        is_alone = [member.rank for member in core.membership.ready()] == [lease.rank]
        is_due = self._until is not None and now >= self._until
        if not lease.is_ending and (is_due or not is_alone or core.hooks.is_held()):
            is_withdrawn = lease.withdraw_at(now)
        else:
            is_withdrawn = now >= lease.due and lease.on_time(now)
        effects = self._to(lease.rank, Withdrawal(number=lease.memory.lease.number)) if is_withdrawn else []
        return [*effects, *self._end(lease, now)] if lease.is_over else effects

    def _count(self, server: TeamSteps, made: StepMade) -> None:
        """Count a step as if its results had come."""
        core = self._core
        micro_batches, account, tally = core.round.micro_batches, core.state.account, made.tally
        member = core.membership.by_rank(made.rank)
        assert tally.count == core.info.job.global_batch * core.info.targets
        for part in made.parts:
            losses = made.losses[4 * part.node.lo : 4 * part.node.hi]
            process = None if member is not None and member.processes == 1 else part.process
            account.record_accepted(part.node, made.rank, losses, part.began_s, part.ended_s, process)
        if member is not None:
            core.scheduler.timeouts.add(made.rank, "train", made.round_s / micro_batches)
            samples = tally.count // core.info.targets
            core.progress.compute_s += core.membership.credit(member, samples, *made.compute_s())
        ended = core.progress.round_started + made.round_s
        core.progress.end_step(tally, ended, core.membership.end_step())
        core.progress.begin_round(ended)
        core.state.account, core.state.round = Account(micro_batches), Round("train", made.step + 1, micro_batches)
        server.record(account, made)

    def _end(self, lease: TeamLease, now: float) -> list[Effect]:
        """Continue step by step; a team that has not answered is stuck if it was late."""
        core = self._core
        self.plan.on_completed(lease.memory.lease.first, lease.recorded, is_cut=lease.is_cut)
        self._leave(lease.recorded, now)
        if not lease.has_answered and core.membership.by_rank(lease.rank) is not None:
            number = lease.memory.lease.number
            core.scheduler.await_multi_step(core.state, lease.rank, number, now, is_late=lease.is_cut)
        return core.assign_leases(now)

    def _leave(self, steps: int, now: float) -> None:
        """Continue step by step."""
        core = self._core
        self.lease, account = None, core.state.account
        core.phase = RunPhase.TRAINING
        # The team has measured the time of its steps by its own clock.
        core.progress.begin_round(min(core.progress.round_started, now))
        core.open_round(Round("train", steps, core.round.micro_batches))
        # Events since the last step was made.
        core.state.account.merge(account)

    def _interrupt(self) -> None:
        """Keep what the team has made: the run ends, and waits for no process."""
        if self.lease is not None:
            self.lease.interrupt()
            self.lease = None

    def _on_dropped(self, received: Received, now: float) -> list[Effect]:
        """Handle that a worker is past a lease: perhaps it is the team, which makes no more of its own."""
        core, member, dropped = self._core, self._core.membership.members.get(received.peer), received.message
        if member is None or not isinstance(dropped, Dropped):
            return []
        lease = self.lease
        if lease is not None and (lease.rank, lease.memory.lease.number) == (member.rank, dropped.number):
            lease.has_answered, lease.due = True, now
            return []
        is_past = core.scheduler.drop(core.state, member, dropped, now)
        return core.assign_leases(now, member) if is_past else []

    def _shown(self, status: Status) -> Status:
        """Return the status as in a run whose steps are leased one by one: it does not matter how a step is made."""
        if self.lease is None or self._core.phase is not RunPhase.MULTI_STEP:
            return status
        rank, ready = self.lease.rank, MemberState.READY.value
        workers = [
            replace(one, state="computing") if (one.rank, one.state) == (rank, ready) else one for one in status.workers
        ]
        return replace(status, phase=RunPhase.TRAINING.value, workers=workers)

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        assert (self._core.phase is RunPhase.MULTI_STEP) == (self.lease is not None), "a lease, or its phase, is lost"
