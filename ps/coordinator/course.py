"""The course of a run: work is given out and comes back, rounds become whole, and others follow. Pure.

Nothing here is an event: what happens, and who takes part, is the coordinator's. Both decide who computes what, and
never what comes of it: the sums are added over one fixed tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.protocol.messages import Finished, Result, shortened
from ps.coordinator import events
from ps.coordinator.effects import Effect, Finish, RecordEpoch, Report, Send, UpdateWeights
from ps.coordinator.membership import Member, Membership, MemberState
from ps.coordinator.next_round import following, phase_in
from ps.coordinator.reminder import Reminder
from ps.coordinator.scheduling.audit import Audit
from ps.coordinator.scheduling.lease_table import LeaseTable
from ps.coordinator.scheduling.lease_timeouts import LeaseTimeouts
from ps.coordinator.scheduling.round_state import RoundState
from ps.coordinator.scheduling.stragglers import StragglerMonitor
from ps.coordinator.transitions import PHASES, RunPhase
from ps.run.info import RunInfo
from ps.run.plan import Round
from ps.run.progress import Progress


@dataclass
class Course:
    """The state of a run, and how it goes on."""

    facts: RunInfo
    phase: RunPhase = RunPhase.GATHERING
    roster: Membership = field(default_factory=Membership)
    progress: Progress = field(default_factory=Progress)
    reminder: Reminder = field(default_factory=Reminder)
    failure: str = ""
    #: Workers that came before all servers were there.
    early: list[events.WorkerJoined] = field(default_factory=list)
    #: The round to begin with, where a run goes on; otherwise the plan's first.
    start: Round | None = None
    books: RoundState = field(init=False)
    vigil: StragglerMonitor = field(init=False)

    def __post_init__(self) -> None:
        if self.facts.servers > 1:
            self.phase = RunPhase.MUSTERING
        self.vigil = StragglerMonitor(LeaseTimeouts(self.facts.lease_timeout_s))
        self.progress.targets, self.progress.guess = self.facts.targets, self.facts.guess
        self._open(self.start or self.facts.plan.first())

    @property
    def round(self) -> Round:
        """The round at hand, or the last one."""
        return self.books.round

    @property
    def pieces(self) -> LeaseTable:
        """Its pieces."""
        return self.books.pieces

    def is_running(self) -> bool:
        """Tell whether pieces are being computed."""
        return self.phase in PHASES.values()

    def is_over(self) -> bool:
        """Tell whether the run has ended, well or not."""
        return self.phase in (RunPhase.FINISHED, RunPhase.FAILED)

    def _patience_s(self, rank: int) -> float:
        """Return how many seconds a worker may take for what it holds from now on."""
        if self.books.awaiting.has(rank):
            return self.facts.lease_timeout_s  # it is done, and other servers are not: they are looked after elsewhere
        return self.vigil.patience_s(rank, self.round.work, self.pieces.holding(rank))

    # Work is given out and comes back

    def _serve_all(self, now: float) -> list[Effect]:
        return self._serve(self.roster.ready(), now) if self._has_work() else []

    def _has_work(self) -> bool:
        return self.is_running() and self.pieces.free() > 0

    def _serve(self, members: Sequence[Member], now: float) -> list[Effect]:
        ready = self.roster.number(MemberState.READY)
        return self.books.serve(members, ready, now, self.vigil.pace) if self._has_work() else []

    def _result(self, event: events.ResultReceived, now: float) -> list[Effect]:
        member, result = self.roster.members.get(event.peer), event.result
        if member is None:
            return []
        self.vigil.pace.came(member.rank, result, self.pieces.holding(member.rank), now)
        effects, counts = self.books.take(member, result, has_shards=self.facts.servers > 1)
        if not counts:
            return effects
        return effects + (self._audited if result.work == "audit" else self._count)(member, result, now)

    def _stored(self, event: events.SumsAcknowledged, now: float) -> list[Effect]:
        """Count a result whose sums all servers have, unless others were quicker."""
        member, result = self.roster.of_rank(event.rank), self.books.awaiting.take(event.rank, event.node)
        if member is None or result is None:
            return []
        if self.books.needs(result):
            return self._count(member, result, now)
        self.books.refuse(member, result)
        return self._serve_all(now)

    def _count(self, member: Member, result: Result, now: float) -> list[Effect]:
        """Book a result whose sums are, or will be at once, where they are to be added."""
        frees_others = self.books.accept(member, result)
        if result.work == "train":
            self.roster.credit(member, result.count // self.facts.targets, result.compute_s)
        if self.pieces.are_done():
            return self._close_round(now) + self._serve_all(now)
        is_alone_to_serve = not frees_others and member.standing is MemberState.READY
        return self._serve([member] if is_alone_to_serve else self.roster.ready(), now)

    def _close_round(self, now: float) -> list[Effect]:
        if self.round.work == "train" and self.books.audit.is_due():
            self.books.begin_audit()
            self.phase = RunPhase.AUDITING
            return []
        tally, account, effects = self.books.tallies.total(), self.books.account, list[Effect]()
        if self.round.work == "train":
            self.progress.end_step(tally, now, self.roster.end_step())
            effects.append(UpdateWeights(step=self.round.step, tally=tally, account=account))
            if self.facts.servers > 1:
                self.progress.begin_round(now)
                self.phase = RunPhase.UPDATING
                return effects
        elif self.round.work == "validate":
            self.progress.end_validation(tally)
        else:
            number = self.facts.plan.epoch_of(self.round.step - 1)
            effects.append(RecordEpoch(epoch=self.progress.end_epoch(number, tally, now), account=account))
        self.progress.begin_round(now)
        return effects + self._go_on()

    def _go_on(self) -> list[Effect]:
        """Open the round that follows, if there is one."""
        then = following(self.facts, self.round, self.progress.history)
        if then is None:
            return self._end()
        done, before = self.round, self.books.account
        self._open(then)
        if done.work == "validate":
            self.books.account.take_over(before)
        self.phase = phase_in(self.facts, then)
        return []

    def _end(self) -> list[Effect]:
        self.phase = RunPhase.FINISHED
        return [*self._dismiss(""), Finish(failure="")]

    def _heed(self, event: events.CallbacksDecided, now: float) -> list[Effect]:
        """Begin the epoch for which callbacks were waited for, or end the run."""
        if event.epoch != self.progress.history[-1].epoch:
            return []
        if event.stops:
            return self._end()
        self.phase = PHASES[self.round.work]
        self.progress.begin_round(now)
        return self._serve_all(now)

    def _open(self, following: Round) -> None:
        self.books = RoundState(following, Audit.of(following, self.facts.audit, self.facts.job.seed))

    # Some of a step is computed again

    def _audited(self, member: Member, result: Result, now: float) -> list[Effect]:
        difference = self.books.audit.difference(member, result)
        if difference:
            return self._fail(difference)
        self.books.accept_again(member, result)
        self.progress.audited += 1
        self.roster.credit_audit(member, result.compute_s)
        return self._serve_all(now)

    def _end_audit(self, now: float) -> list[Effect]:
        """Go on once all is audited for which there is somebody: it waits for nobody."""
        if self.phase is not RunPhase.AUDITING:
            return []
        missed = self.books.forgo([member.rank for member in self.roster.ready()])
        is_first, self.progress.unaudited = not self.progress.unaudited, self.progress.unaudited + len(missed)
        text = f"no audit of {self.round.named(missed)}, nor of others now: no other worker is ready; the run goes on"
        told: list[Effect] = [Report(text=text)] if missed and is_first else []
        if not self.pieces.are_done():
            return told
        self.books.end_audit()
        return [*told, *self._close_round(now), *self._serve_all(now)]

    def _fail(self, failure: str, *, is_diverged: bool = False, may_go_on: bool = False) -> list[Effect]:
        """End the run, or this process alone: workers look for one that goes on from a checkpoint."""
        self.phase, self.failure = RunPhase.FAILED, failure
        finish = Finish(failure=failure, is_diverged=is_diverged)
        return [finish] if may_go_on else [*self._dismiss(failure), finish]

    def _dismiss(self, reason: str) -> list[Effect]:
        peers = [*self.roster.members, *(early.peer for early in self.early)]
        return [Send(peer=peer, message=Finished(reason=shortened(reason))) for peer in peers]
