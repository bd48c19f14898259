"""The coordinator decides who computes what, and when a step is whole. No socket, clock, file or array.

`handle(event, now)` returns what is to be done; `deadline()` says when to call again if nothing happens before. What it
decides never changes the result, only who computes it: the sums are added over one fixed tree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from common.errors import ProtocolError
from common.messages import (
    Alive,
    Finished,
    Lease,
    Refused,
    Standby,
    Status,
    Welcome,
)
from common.reduction import Node, TreeSum
from common.tally import Tally
from ps.admission import refusal
from ps.divergence import diverged_text
from ps.effects import AddSums, Effect, Finish, RecordEpoch, Say, Send, SendWeights, UpdateWeights
from ps.events import (
    Event,
    Interrupted,
    LossDiverged,
    PieceFailed,
    ResultReceived,
    StatusRequested,
    TimePassed,
    WorkerAsked,
    WorkerJoined,
    WorkerLeft,
    WorkerPrepared,
)
from ps.facts import RunFacts
from ps.phases import TRANSITIONS, Phase
from ps.pieces import Pieces
from ps.plan import Round
from ps.progress import Progress
from ps.report import status_of
from ps.roster import Member, Roster, Standing

#: Leases that a worker may hold: the next one is there when it finishes one.
WINDOW = 2

#: Seconds between two words on whom the run waits for.
REMINDER_S = 5.0

#: Seconds between two probes of the workers: sending to a dead process on one host fails, which is how it is noticed.
PROBE_S = 1.0


@dataclass
class Coordinator:
    """The state of a run; see `ps.phases` for the table that it obeys."""

    facts: RunFacts
    phase: Phase = Phase.GATHERING
    roster: Roster = field(default_factory=Roster)
    progress: Progress = field(default_factory=Progress)
    failure: str = ""
    #: When to say again for whom the run waits; None while it does not wait.
    reminder: float | None = -math.inf
    #: When the workers are probed next.
    probe: float = -math.inf
    round: Round = field(init=False)
    pieces: Pieces = field(init=False)
    #: The round's counts, over the same tree as its sums.
    tallies: TreeSum[Tally] = field(init=False)

    def __post_init__(self) -> None:
        self._open(self.facts.plan.first())

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened at `now` seconds; return what is to be done, in order."""
        targets = TRANSITIONS[self.phase, type(event)]
        if not targets:
            return []
        effects = self._react(event, now)
        if self.phase not in targets:
            raise ProtocolError(f"{type(event).__name__} led to {self.phase.name}: not a transition of the table")
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due, None where only a message can move the run."""
        if self.is_over():
            return None
        due = [
            self.reminder,
            self.probe if self.roster.members else None,
            self.pieces.next_deadline() if self.is_running() else None,
        ]
        return min((at for at in due if at is not None), default=None)

    def is_running(self) -> bool:
        """Tell whether pieces are being computed."""
        return self.phase in (Phase.TRAINING, Phase.EVALUATING)

    def is_over(self) -> bool:
        """Tell whether the run has ended, well or not."""
        return self.phase in (Phase.FINISHED, Phase.FAILED)

    def _react(self, event: Event, now: float) -> list[Effect]:
        match event:
            case WorkerJoined():
                return self._join(event)
            case WorkerPrepared():
                return self._prepared(event.peer, now)
            case ResultReceived():
                return self._result(event, now)
            case PieceFailed():
                return self._piece_failed(event, now)
            case LossDiverged():
                return self._diverged(event)
            case WorkerLeft():
                return self._left(event, now)
            case WorkerAsked():
                return self._asked(event.peer, now)
            case StatusRequested():
                return [Send(peer=event.peer, message=self.status(now))]
            case TimePassed():
                return self._time_passed(now)
            case Interrupted():
                return self._fail("interrupted")
            case _:
                assert_never(event)

    # Workers come and go

    def _join(self, event: WorkerJoined) -> list[Effect]:
        reason = self._refusal(event)
        if reason:
            return [Send(peer=event.peer, message=Refused(reason=reason)), Say(text=f"refused a worker: {reason}")]
        if self.is_over():
            return [Send(peer=event.peer, message=Finished(reason=self.failure))]
        if event.peer in self.roster.members:
            return []
        member = self.roster.admit(event.peer, event.join)
        facts = self.facts
        welcome = Welcome(
            rank=member.rank,
            run=facts.run,
            job=facts.job,
            layout=facts.layout,
            dataset=facts.dataset,
            source=facts.source,
        )
        return [Send(peer=event.peer, message=welcome), Say(text=f"{member.named()} joined")]

    def _refusal(self, event: WorkerJoined) -> str:
        twin = self.roster.incarnation_of(event.join.incarnation)
        if twin is not None and twin.peer != event.peer:
            return f"incarnation {event.join.incarnation!r} is {twin.named()} already: start a new worker"
        facts = self.facts
        return refusal(event.join, facts.fingerprint, allows_mixed_numerics=facts.allows_mixed_numerics)

    def _prepared(self, peer: bytes, now: float) -> list[Effect]:
        member = self.roster.members.get(peer)
        if member is None or member.standing is not Standing.PREPARING:
            return []
        effects: list[Effect] = []
        places = self.facts.job.micro_batches
        if not self.roster.seat(member, places):
            reason = f"{places} micro-batches keep {places} workers busy: waiting to stand in for one that goes"
            effects += [
                Send(peer=peer, message=Standby(reason=reason)),
                Say(text=f"{member.named()} stands by: {reason}"),
            ]
        if self.phase is Phase.GATHERING and len(self.roster.prepared()) >= self.facts.min_workers:
            self.phase, self.reminder = Phase.TRAINING, None
            self.progress.begin_round(now)
        return effects + self._hand_out(now)

    def _left(self, event: WorkerLeft, now: float) -> list[Effect]:
        member = self.roster.members.pop(event.peer, None)
        if member is None:
            return []
        released = self.pieces.release(member.rank)
        pieces = f"; {self._what(released)} goes to others" if released else ""
        self.roster.fill(self.facts.job.micro_batches)
        self._remind_if_alone(now)
        return [Say(text=f"{member.named()} left: {event.reason}{pieces}"), *self._hand_out(now)]

    def _what(self, nodes: Sequence[Node]) -> str:
        return f"micro-batches {', '.join(map(str, nodes))} of step {self.round.step}"

    def _remind_if_alone(self, now: float) -> None:
        if self.is_running() and not self.roster.ready():
            self.reminder = now

    # Work is given out and comes back

    def _hand_out(self, now: float) -> list[Effect]:
        """Lease free pieces, one to each worker in turn, until all hold a full window or nothing is free."""
        if not self.is_running():
            return []
        effects: list[Effect] = []
        ready = self.roster.ready()
        for _ in range(WINDOW):
            for member in sorted(ready, key=lambda one: len(self.pieces.holding(one.rank))):
                if len(self.pieces.holding(member.rank)) < WINDOW:
                    effects += self._lease(member, len(ready), now)
        return effects

    def _lease(self, member: Member, ready: int, now: float) -> list[Effect]:
        # Guided self-scheduling (Polychronopoulos and Kuck, 1987): half a fair share of what is left, so that the first
        # leases are large and the last ones small enough for all to finish together.
        most = max(1, -(-len(self.pieces.free()) // (WINDOW * ready))) if ready > 1 else self.round.pieces
        deadline = now + self.facts.lease_timeout_s
        node = self.pieces.take(member.rank, most, deadline, is_alone=ready == 1)
        if node is None:
            return []
        lease = Send(
            peer=member.peer, message=Lease(work=self.round.work, step=self.round.step, lo=node.lo, hi=node.hi)
        )
        if member.weights_step == self.round.step:
            return [lease]
        member.weights_step = self.round.step
        return [SendWeights(peer=member.peer, step=self.round.step), lease]

    def _result(self, event: ResultReceived, now: float) -> list[Effect]:
        member, result = self.roster.members.get(event.peer), event.result
        if member is None:
            return []
        if member.standing is Standing.SILENT:
            member.standing = Standing.READY
        node = result.node()
        if (result.work, result.step) != (self.round.work, self.round.step) or not self.pieces.accept(node):
            return self._hand_out(now)
        tally = Tally(result.loss_sum, result.correct, result.count)
        self.tallies.add(node, tally)
        effects: list[Effect] = []
        if result.work == "train":
            self.roster.credit(member, result.count, result.compute_s)
            effects.append(AddSums(node=node))
        if self.pieces.are_done():
            effects += self._close_round(now)
        return effects + self._hand_out(now)

    def _close_round(self, now: float) -> list[Effect]:
        tally, effects = self.tallies.total(), list[Effect]()
        if self.round.work == "train":
            self.progress.end_step(tally, now)
            effects.append(UpdateWeights(step=self.round.step, tally=tally))
        else:
            number = self.facts.plan.epoch_of(self.round.step - 1)
            effects.append(RecordEpoch(epoch=self.progress.end_epoch(number, tally, now)))
        following = self.facts.plan.after(self.round)
        if following is None:
            self.phase = Phase.FINISHED
            return [*effects, *self._dismiss(""), Finish(failure="")]
        self._open(following)
        self.progress.begin_round(now)
        self.phase = Phase.TRAINING if following.work == "train" else Phase.EVALUATING
        return effects

    def _open(self, following: Round) -> None:
        self.round = following
        self.pieces = Pieces(following.pieces)
        self.tallies = TreeSum(following.pieces, lambda left, right: left + right)

    # What goes wrong

    def _piece_failed(self, event: PieceFailed, now: float) -> list[Effect]:
        member, failed = self.roster.members.get(event.peer), event.failed
        if member is None or (failed.work, failed.step) != (self.round.work, self.round.step):
            return []
        what = f"{self._what([failed.node()])} on {member.named()}"
        if self.pieces.fail(failed.node(), member.rank):
            return self._fail(f"{what} raised, as it did before:\n{failed.traceback}")
        return [Say(text=f"{what} raised, and is tried once more:\n{failed.traceback}"), *self._hand_out(now)]

    def _diverged(self, event: LossDiverged) -> list[Effect]:
        diverged = event.diverged
        if (diverged.work, diverged.step) != (self.round.work, self.round.step):
            return []
        text = diverged_text(diverged.work, diverged.step, diverged.micro_batch, diverged.layer)
        return self._fail(text, is_diverged=True)

    def _fail(self, failure: str, *, is_diverged: bool = False) -> list[Effect]:
        self.phase, self.failure, self.reminder = Phase.FAILED, failure, None
        return [*self._dismiss(failure), Finish(failure=failure, is_diverged=is_diverged)]

    def _dismiss(self, reason: str) -> list[Effect]:
        return [Send(peer=peer, message=Finished(reason=reason)) for peer in self.roster.members]

    def _asked(self, peer: bytes, now: float) -> list[Effect]:
        if self.is_over():
            return [Send(peer=peer, message=Finished(reason=self.failure))]
        member = self.roster.members.get(peer)
        if member is None:
            return [Send(peer=peer, message=Refused(reason="this server does not know the worker: start it again"))]
        if member.standing is Standing.SILENT:
            member.standing = Standing.READY
        return [Send(peer=peer, message=Alive()), *self._hand_out(now)]

    def _time_passed(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for held in self.pieces.expired(now) if self.is_running() else []:
            effects += self._expire(held.rank)
        self.roster.fill(self.facts.job.micro_batches)
        self._remind_if_alone(now)
        return effects + self._remind(now) + self._probe(now) + self._hand_out(now)

    def _probe(self, now: float) -> list[Effect]:
        if now < self.probe:
            return []
        self.probe = now + PROBE_S
        return [Send(peer=peer, message=Alive()) for peer in self.roster.members]

    def _expire(self, rank: int) -> list[Effect]:
        released = self.pieces.release(rank)
        member = next((one for one in self.roster.members.values() if one.rank == rank), None)
        if member is None or not released:
            return []
        member.standing = Standing.SILENT
        text = f"{member.named()} holds {self._what(released)} for over {self.facts.lease_timeout_s:g} s: leased again"
        return [Say(text=text)]

    def _remind(self, now: float) -> list[Effect]:
        if self.phase is Phase.GATHERING:
            have, need = len(self.roster.prepared()), self.facts.min_workers
            text = f"waiting for workers: {have} of {need} are ready"
        elif self.is_running() and not self.roster.ready():
            text = "waiting for a worker: none is left"
        else:
            self.reminder = None
            return []
        if self.reminder is not None and now < self.reminder:
            return []
        self.reminder = now + REMINDER_S
        return [Say(text=text)]

    # What is told

    def status(self, now: float) -> Status:
        """Return how the run stands."""
        workers = [
            member.status(is_busy=bool(self.pieces.holding(member.rank))) for member in self.roster.members.values()
        ]
        return status_of(self.facts, self.progress, self.phase, self.round, now, workers, self.failure)
