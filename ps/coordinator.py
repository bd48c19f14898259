"""The coordinator decides who computes what, and when a step is whole. No socket, clock, file or array.

`handle(event, now)` returns what is to be done; `deadline()` says when to call again if nothing happens before. What it
decides never changes the result, only who computes it: the sums are added over one fixed tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from common.errors import ProtocolError
from common.messages import Alive, Fenced, Finished, Result, Status, shortened
from ps import events
from ps.audit import Audit
from ps.effects import Effect, Finish, ForgetWorker, RecordEpoch, Say, Send, UpdateWeights
from ps.facts import RunFacts
from ps.onward import following, phase_in
from ps.overdue import Overdue
from ps.pace import Pace
from ps.phases import PHASES, TRANSITIONS, Phase
from ps.pieces import Pieces
from ps.plan import Round
from ps.progress import Progress
from ps.reception import Reception
from ps.reminder import Reminder
from ps.report import status_of, waits_for, with_denials
from ps.roster import Member, Roster, Standing
from ps.round_books import RoundBooks
from ps.trouble import Failure, Trouble
from ps.vigil import Vigil

#: What a peer is told that says what only a member says.
STRANGER = "the server does not know this worker: it was silent for too long, or the server was started again"


@dataclass
class Coordinator:
    """The state of a run; see `ps.phases` for the table that it obeys."""

    facts: RunFacts
    phase: Phase = Phase.GATHERING
    roster: Roster = field(default_factory=Roster)
    progress: Progress = field(default_factory=Progress)
    reminder: Reminder = field(default_factory=Reminder)
    failure: str = ""
    #: Workers that came before all servers were there.
    early: list[events.WorkerJoined] = field(default_factory=list)
    #: The round to begin with, where a run goes on; otherwise the plan's first.
    start: Round | None = None
    books: RoundBooks = field(init=False)
    vigil: Vigil = field(init=False)

    def __post_init__(self) -> None:
        if self.facts.servers > 1:
            self.phase = Phase.MUSTERING
        self.vigil = Vigil(Pace(self.facts.lease_timeout_s))
        self.progress.targets, self.progress.guess = self.facts.targets, self.facts.guess
        self._open(self.start or self.facts.plan.first())

    @property
    def round(self) -> Round:
        """The round at hand, or the last one."""
        return self.books.round

    @property
    def pieces(self) -> Pieces:
        """Its pieces."""
        return self.books.pieces

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        """Take in what happened at `now` seconds; return what is to be done, in order."""
        self.vigil.look(now, self.pieces)
        if isinstance(event, events.FROM_MEMBERS) and event.peer not in self.roster.members and not self.is_over():
            # Before the table, since it is of the run's phases, and whoever this is takes no part in the run.
            return [Send(peer=event.peer, message=Fenced(reason=STRANGER))]
        targets = TRANSITIONS[self.phase, type(event)]
        if not targets:
            return []
        effects = self._react(event, now)
        if not self.is_over():
            effects += self._hear(event, now) + self._end_audit(now) + self._remind(now)
        if self.phase not in targets:
            raise ProtocolError(f"{type(event).__name__} led to {self.phase.name}: not a transition of the table")
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due, None where only a message can move the run."""
        if self.is_over():
            return None
        due = [self.reminder.due, self.roster.next_probe(), self.vigil.due(self.pieces)]
        return min((at for at in due if at is not None), default=None)

    def is_running(self) -> bool:
        """Tell whether pieces are being computed."""
        return self.phase in PHASES.values()

    def is_over(self) -> bool:
        """Tell whether the run has ended, well or not."""
        return self.phase in (Phase.FINISHED, Phase.FAILED)

    def _react(self, event: events.Event, now: float) -> list[Effect]:
        match event:
            case events.WorkerJoined():
                return self._join(event, now)
            case events.WorkerPrepared():
                return self._prepared(event, now)
            case events.WorkerAdvanced():
                return []
            case events.ResultReceived():
                return self._result(event, now)
            case events.PieceFailed():
                return self._piece_failed(event, now)
            case events.LossDiverged():
                return self._diverged(event)
            case events.WorkerLeft():
                return self._left(event, now)
            case events.WorkerAsked():
                return self._asked(event.peer)
            case events.StatusRequested():
                return [Send(peer=event.peer, message=with_denials(self.status(now), event.refused, event.broken))]
            case events.VerdictGiven():
                return self._heed(event, now)
            case events.ServersReady():
                return self._mustered(event, now)
            case events.SumsStored():
                return self._stored(event, now)
            case events.StepUpdated():
                return self._go_on() + self._serve_all(now) if event.step == self.round.step else []
            case events.ServerLost():
                return self._fail(event.text, may_go_on=True)
            case events.WeightsSpoilt():
                return self._fail(event.text, is_diverged=True)
            case events.TimePassed():
                return self._time_passed(now)
            case events.Interrupted():
                return self._fail("interrupted")
            case _:
                assert_never(event)

    # Workers come and go

    def _join(self, event: events.WorkerJoined, now: float) -> list[Effect]:
        reception = self._reception()
        if refused := reception.refusal(event):
            return refused
        if self.is_over():
            return [Send(peer=event.peer, message=Finished(reason=shortened(self.failure)))]
        if event.peer in self.roster.members:
            return []
        if self.phase is Phase.MUSTERING:
            self.early = [early for early in self.early if early.peer != event.peer] + [event]
            return []
        return reception.admit(event, now)

    def _reception(self) -> Reception:
        return Reception(self.facts, self.roster, self.books.account)

    def _mustered(self, event: events.ServersReady, now: float) -> list[Effect]:
        memory = self.facts.memory if event.shares else ""
        self.facts = replace(self.facts, shards=event.addresses, memory=memory)
        self.roster.obstacle = self.roster.obstacle or event.obstacle
        self.phase = Phase.GATHERING
        early, self.early = self.early, []
        return [effect for joined in early for effect in self._join(joined, now)]

    def _prepared(self, event: events.WorkerPrepared, now: float) -> list[Effect]:
        member = self.roster.members.get(event.peer)
        if member is None or member.standing is not Standing.PREPARING:
            return []
        effects = self._reception().prepared(member, event)
        if self.phase is Phase.GATHERING and self.roster.number_prepared() >= self.facts.min_workers:
            self.phase = phase_in(self.facts, self.round)
            self.progress.begin_round(now)
        return effects + self._serve_all(now)

    def _left(self, event: events.WorkerLeft, now: float) -> list[Effect]:
        member = self.roster.remove(event.peer)
        if member is None:
            return []
        released = self.books.release(member.rank, f"it left: {event.reason}")
        self.vigil.forget(member.rank)
        pieces = f"; {self.round.named(released)} go to others" if released else ""
        told = Say(text=f"{member.named()} left: {event.reason}{pieces}")
        forget = ForgetWorker(peer=member.peer, rank=member.rank)
        return [told, forget, *self._reception().fill_places(), *self._serve_all(now)]

    def _hear(self, event: events.Event, now: float) -> list[Effect]:
        """Book a sign of life: one of work puts off the end of leases; a worker that was silent gets work again."""
        if isinstance(event, events.NO_SIGN):
            return []
        member = self.roster.hear(event.peer, now)
        if member is None:
            return []
        self.vigil.hear(member.rank)
        if isinstance(event, events.WorkerAdvanced | events.ResultReceived):
            self.pieces.extend(member.rank, now + self._patience_s(member.rank))
        if member.standing is not Standing.SILENT:
            return []
        return self._reception().seat(member) + self._serve_all(now)

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
        ready = self.roster.number(Standing.READY)
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

    def _stored(self, event: events.SumsStored, now: float) -> list[Effect]:
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
        is_alone_to_serve = not frees_others and member.standing is Standing.READY
        return self._serve([member] if is_alone_to_serve else self.roster.ready(), now)

    def _close_round(self, now: float) -> list[Effect]:
        if self.round.work == "train" and self.books.audit.is_due():
            self.books.begin_audit()
            self.phase = Phase.AUDITING
            return []
        tally, account, effects = self.books.tallies.total(), self.books.account, list[Effect]()
        if self.round.work == "train":
            self.progress.end_step(tally, now, self.roster.end_step())
            effects.append(UpdateWeights(step=self.round.step, tally=tally, account=account))
            if self.facts.servers > 1:
                self.progress.begin_round(now)
                self.phase = Phase.UPDATING
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
        self.phase = Phase.FINISHED
        return [*self._dismiss(""), Finish(failure="")]

    def _heed(self, event: events.VerdictGiven, now: float) -> list[Effect]:
        """Begin the epoch for which callbacks were waited for, or end the run."""
        if event.epoch != self.progress.history[-1].epoch:
            return []
        if event.stops:
            return self._end()
        self.phase = PHASES[self.round.work]
        self.progress.begin_round(now)
        return self._serve_all(now)

    def _open(self, following: Round) -> None:
        self.books = RoundBooks(following, Audit.of(following, self.facts.audit, self.facts.job.seed))

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
        if self.phase is not Phase.AUDITING:
            return []
        missed = self.books.forgo([member.rank for member in self.roster.ready()])
        is_first, self.progress.unaudited = not self.progress.unaudited, self.progress.unaudited + len(missed)
        text = f"no audit of {self.round.named(missed)}, nor of others now: no other worker is ready; the run goes on"
        told: list[Effect] = [Say(text=text)] if missed and is_first else []
        if not self.pieces.are_done():
            return told
        self.books.end_audit()
        return [*told, *self._close_round(now), *self._serve_all(now)]

    # What goes wrong

    def _piece_failed(self, event: events.PieceFailed, now: float) -> list[Effect]:
        found = Trouble(self.books, self.roster).raised(event)
        if isinstance(found, Failure):
            return self._fail(found.text)
        return [Say(text=found), *self._serve_all(now)] if found else []

    def _diverged(self, event: events.LossDiverged) -> list[Effect]:
        found = Trouble(self.books, self.roster).diverged(event)
        return [] if found is None else self._fail(found.text, is_diverged=found.is_diverged)

    def _fail(self, failure: str, *, is_diverged: bool = False, may_go_on: bool = False) -> list[Effect]:
        """End the run, or this process alone: workers look for one that goes on from a checkpoint."""
        self.phase, self.failure = Phase.FAILED, failure
        finish = Finish(failure=failure, is_diverged=is_diverged)
        return [finish] if may_go_on else [*self._dismiss(failure), finish]

    def _dismiss(self, reason: str) -> list[Effect]:
        peers = [*self.roster.members, *(early.peer for early in self.early)]
        return [Send(peer=peer, message=Finished(reason=shortened(reason))) for peer in peers]

    def _asked(self, peer: bytes) -> list[Effect]:
        if self.is_over():
            return [Send(peer=peer, message=Finished(reason=shortened(self.failure)))]
        return [Send(peer=peer, message=Alive())]

    # Time passes

    def _time_passed(self, now: float) -> list[Effect]:
        overdue = Overdue(self.books, self.roster, self.vigil)
        late, fenced = overdue.expire(now), overdue.fence(now)
        probes = [Send(peer=member.peer, message=Alive()) for member in self.roster.due_for_probe(now)]
        served = [*self._reception().fill_places(), *self._serve_all(now)]
        return [*map(overdue.told, late), *fenced, *probes, *served]

    def _remind(self, now: float) -> list[Effect]:
        text = waits_for(self.phase, self.roster, self.facts)
        return [Say(text=text)] if self.reminder.is_due(now, is_waiting=bool(text)) else []

    # What is told

    def status(self, now: float) -> Status:
        """Return how the run stands."""
        members = self.roster.members.values()
        workers = [member.status(is_busy=member.rank in self.pieces.held) for member in members]
        return status_of(self.facts, self.progress, self.phase, self.round, now, workers, self.failure)

    def validate(self) -> None:
        """Raise AssertionError where the state contradicts itself: for tests, after each event."""
        self.roster.validate(self.facts.job.micro_batches)
        ready = {member.rank for member in self.roster.ready()}
        assert self.pieces.held.keys() <= ready, "one holds pieces that is not ready"
        assert self.is_running() or self.is_over() or not self.pieces.held
        if self.is_running():
            assert not self.pieces.are_done()
            self.books.validate(sorted(ready))
            assert ready or self.reminder.due is not None, "nobody works, and nobody is called"
