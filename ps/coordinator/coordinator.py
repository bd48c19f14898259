"""The coordinator decides who computes what, and when a step is whole. No socket, clock, file or array.

`handle(event, now)` returns what is to be done; `deadline()` says when to call again if nothing happens before. What it
decides never changes the result, only who computes it: the sums are added over one fixed tree.
"""

from dataclasses import dataclass, replace
from typing import assert_never

from common.protocol.messages import Eviction, Finished, Ping, Status, shortened
from common.statemachine.transitions import check_reached, targets_in
from ps.coordinator import events
from ps.coordinator.course import Course
from ps.coordinator.effects import Effect, ForgetWorker, Report, Send
from ps.coordinator.failures import Failure, Failures
from ps.coordinator.membership import MemberState
from ps.coordinator.next_round import phase_in
from ps.coordinator.overdue import Overdue
from ps.coordinator.registration import Registration
from ps.coordinator.status import status_of, waits_for, with_denials
from ps.coordinator.transitions import TRANSITIONS, RunPhase

#: What a peer is told that says what only a member says.
STRANGER = "the server does not know this worker: it was silent for too long, or the server was started again"


@dataclass
class Coordinator(Course):
    """Takes in what happens to a run; see `ps.coordinator.transitions` for the table that it obeys."""

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        """Take in what happened at `now` seconds; return what is to be done, in order."""
        self.vigil.look(now, self.pieces)
        if isinstance(event, events.FROM_MEMBERS) and event.peer not in self.roster.members and not self.is_over():
            # Before the table, since it is of the run's phases, and whoever this is takes no part in the run.
            return [Send(peer=event.peer, message=Eviction(reason=STRANGER))]
        targets = targets_in(TRANSITIONS, self.phase, event)
        if not targets:
            return []
        effects = self._react(event, now)
        if not self.is_over():
            effects += self._hear(event, now) + self._end_audit(now) + self._remind(now)
        check_reached(targets, event, self.phase)
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due, None where only a message can move the run."""
        if self.is_over():
            return None
        due = [self.reminder.due, self.roster.next_probe(), self.vigil.due(self.pieces)]
        return min((at for at in due if at is not None), default=None)

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
            case events.LeaseFailed():
                return self._piece_failed(event, now)
            case events.LossDiverged():
                return self._diverged(event)
            case events.WorkerLeft():
                return self._left(event, now)
            case events.WorkerAsked():
                return self._asked(event.peer)
            case events.StatusRequested():
                return [Send(peer=event.peer, message=with_denials(self.status(now), event.refused, event.broken))]
            case events.CallbacksDecided():
                return self._heed(event, now)
            case events.ServersReady():
                return self._mustered(event, now)
            case events.SumsAcknowledged():
                return self._stored(event, now)
            case events.StepUpdated():
                return self._go_on() + self._serve_all(now) if event.step == self.round.step else []
            case events.ServerLost():
                return self._fail(event.text, may_go_on=True)
            case events.WeightsNotFinite():
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
        if self.phase is RunPhase.MUSTERING:
            self.early = [early for early in self.early if early.peer != event.peer] + [event]
            return []
        return reception.admit(event, now)

    def _reception(self) -> Registration:
        return Registration(self.facts, self.roster, self.books.account)

    def _mustered(self, event: events.ServersReady, now: float) -> list[Effect]:
        memory = self.facts.memory if event.shares else ""
        self.facts = replace(self.facts, shards=event.addresses, memory=memory)
        self.roster.obstacle = self.roster.obstacle or event.obstacle
        self.phase = RunPhase.GATHERING
        early, self.early = self.early, []
        return [effect for joined in early for effect in self._join(joined, now)]

    def _prepared(self, event: events.WorkerPrepared, now: float) -> list[Effect]:
        member = self.roster.members.get(event.peer)
        if member is None or member.standing is not MemberState.PREPARING:
            return []
        effects = self._reception().prepared(member, event)
        if self.phase is RunPhase.GATHERING and self.roster.number_prepared() >= self.facts.min_workers:
            self.phase = phase_in(self.facts, self.round)
            self.progress.begin_round(now)
        return effects + self._serve_all(now)

    def _left(self, event: events.WorkerLeft, now: float) -> list[Effect]:
        self.early = [early for early in self.early if early.peer != event.peer]
        member = self.roster.remove(event.peer)
        if member is None:
            return []
        released = self.books.release(member.rank, f"it left: {event.reason}")
        self.vigil.forget(member.rank)
        pieces = f"; {self.round.named(released)} go to others" if released else ""
        told = Report(text=f"{member.named()} left: {event.reason}{pieces}")
        forget = ForgetWorker(peer=member.peer, rank=member.rank)
        return [told, forget, *self._reception().fill_places(), *self._serve_all(now)]

    def _hear(self, event: events.Event, now: float) -> list[Effect]:
        """Book a sign of life: one of work puts off the end of leases; a worker that was silent gets work again.

        A word alone, again and again, does not get it work again and again, of which nothing comes.
        """
        if isinstance(event, events.NO_SIGN):
            return []
        member = self.roster.hear(event.peer, now)
        if member is None:
            return []
        self.vigil.hear(member.rank)
        if isinstance(event, events.WorkerAdvanced | events.ResultReceived):
            self.pieces.extend(member.rank, now + self._patience_s(member.rank))
        if member.standing is not MemberState.SILENT:
            return []
        is_needed = not self.roster.number(MemberState.READY)
        if isinstance(event, events.MERE_WORDS) and not is_needed and not self.vigil.may_be_trusted(member.rank, now):
            return []
        return self._reception().seat(member) + self._serve_all(now)

    # What goes wrong

    def _piece_failed(self, event: events.LeaseFailed, now: float) -> list[Effect]:
        found = Failures(self.books, self.roster).raised(event)
        if isinstance(found, Failure):
            return self._fail(found.text)
        return [Report(text=found), *self._serve_all(now)] if found else []

    def _diverged(self, event: events.LossDiverged) -> list[Effect]:
        found = Failures(self.books, self.roster).diverged(event)
        return [] if found is None else self._fail(found.text, is_diverged=found.is_diverged)

    def _asked(self, peer: bytes) -> list[Effect]:
        if self.is_over():
            return [Send(peer=peer, message=Finished(reason=shortened(self.failure)))]
        return [Send(peer=peer, message=Ping())]

    # Time passes

    def _time_passed(self, now: float) -> list[Effect]:
        overdue = Overdue(self.books, self.roster, self.vigil)
        late, fenced = overdue.expire(now), overdue.fence(now)
        probes = [Send(peer=member.peer, message=Ping()) for member in self.roster.due_for_probe(now)]
        served = [*self._reception().fill_places(), *self._serve_all(now)]
        return [*map(overdue.told, late), *fenced, *probes, *served]

    def _remind(self, now: float) -> list[Effect]:
        text = waits_for(self.phase, self.roster, self.facts)
        return [Report(text=text)] if self.reminder.is_due(now, is_waiting=bool(text)) else []

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
