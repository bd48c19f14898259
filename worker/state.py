"""The worker decides what to do next. No socket, clock, file or array; no state of the run.

`handle(event, now)` returns what is to be done; `deadline()` says when `TimePassed` is due.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

import msgspec

from common.errors import RefusalKind
from common.files.sanitize import one_line
from common.protocol.messages import (
    NAME_LIMIT,
    ComputeFailed,
    Diverged,
    Join,
    Lease,
    Leave,
    Ping,
    Ready,
    Refused,
    SamplesRequest,
    shortened,
)
from common.runtime.backoff import Backoff
from common.statemachine.transitions import IGNORED, ILLEGAL, check_reached, table_of, targets_in
from worker.effects import ComputeLease, Effect, Exit, Greet, Prepare, Report, Send, SendResult
from worker.events import (
    Event,
    Evicted,
    Interrupted,
    JoinRefused,
    LeaseComputed,
    LeaseDiverged,
    LeaseRaised,
    LeaseReceived,
    PreparationFailed,
    Prepared,
    ProtocolBroken,
    RunFinished,
    SamplesLacked,
    SamplesReceived,
    SamplesUnkept,
    ServerAnswered,
    Started,
    TimePassed,
    ToldToStandBy,
    WeightsReceived,
    Welcomed,
)

#: Seconds until a server is asked again that does not answer: at first, and at most. Of one that was there it is known
#: that it may be back at any moment.
ASK_S = 2.0
ASK_MOST_S = 5.0

#: The same at most of a server that was never there: questions that find none wait, and will all arrive at once.
CALL_MOST_S = 60.0

#: Leases that wait, of which a server gives out a few: the first ones are forgotten where one gives out more.
MOST_LEASES = 1024

#: Seconds of a server's silence after which a person is told of it: then at twice the time, and so on.
SILENT_S = 10.0


class WorkerPhase(Enum):
    """What the worker is doing."""

    JOINING = "joining"
    PREPARING = "preparing"
    WAITING = "waiting"
    COMPUTING = "computing"
    ENDED = "ended"


_JOINING, _PREPARING = frozenset({WorkerPhase.JOINING}), frozenset({WorkerPhase.PREPARING})
_WAITING, _COMPUTING, _ENDED = (
    frozenset({WorkerPhase.WAITING}),
    frozenset({WorkerPhase.COMPUTING}),
    frozenset({WorkerPhase.ENDED}),
)

#: For each event, what may follow in the phases JOINING, PREPARING, WAITING, COMPUTING, ENDED.
#: While it computes or prepares, the shell reads no messages: they wait in the socket.
_TABLE: dict[type[Event], tuple[frozenset[WorkerPhase] | None, ...]] = {
    Started: (_JOINING, ILLEGAL, ILLEGAL, ILLEGAL, ILLEGAL),
    Welcomed: (_PREPARING, ILLEGAL, IGNORED, ILLEGAL, IGNORED),
    JoinRefused: (_JOINING | _ENDED, ILLEGAL, _WAITING | _ENDED, ILLEGAL, IGNORED),
    Evicted: (IGNORED, ILLEGAL, _JOINING, ILLEGAL, IGNORED),
    Prepared: (ILLEGAL, _WAITING, ILLEGAL, ILLEGAL, IGNORED),
    PreparationFailed: (ILLEGAL, _ENDED, ILLEGAL, ILLEGAL, IGNORED),
    ToldToStandBy: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, IGNORED),
    WeightsReceived: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, IGNORED),
    LeaseReceived: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, IGNORED),
    SamplesLacked: (ILLEGAL, ILLEGAL, ILLEGAL, _WAITING, IGNORED),
    SamplesReceived: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, IGNORED),
    SamplesUnkept: (IGNORED, ILLEGAL, _ENDED, ILLEGAL, IGNORED),
    LeaseComputed: (ILLEGAL, ILLEGAL, ILLEGAL, _WAITING, IGNORED),
    LeaseDiverged: (ILLEGAL, ILLEGAL, ILLEGAL, _WAITING, IGNORED),
    LeaseRaised: (ILLEGAL, ILLEGAL, ILLEGAL, _WAITING, IGNORED),
    ServerAnswered: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, IGNORED),
    RunFinished: (_ENDED, ILLEGAL, _ENDED, ILLEGAL, IGNORED),
    ProtocolBroken: (_ENDED, ILLEGAL, _ENDED, ILLEGAL, IGNORED),
    TimePassed: (_JOINING | _ENDED, ILLEGAL, _WAITING | _COMPUTING | _ENDED, ILLEGAL, IGNORED),
    Interrupted: (_ENDED, _ENDED, _ENDED, _ENDED, IGNORED),
}

#: For each phase and event the phases that may follow, `IGNORED`, or `ILLEGAL`.
TRANSITIONS = table_of(WorkerPhase, _TABLE)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a worker is told at its start."""

    address: str
    join: Join
    #: Seconds to wait for a server that is not there, None for ever.
    timeout_s: float | None = None
    #: Seconds for which a server that was there and went silent is asked whether it is back.
    silence_s: float = 600.0


@dataclass
class WorkerState:
    """Where a worker stands; see `TRANSITIONS` for the table that it obeys."""

    facts: WorkerConfig
    phase: WorkerPhase = WorkerPhase.JOINING
    #: When it began to wait for a server.
    started: float = 0.0
    #: When the server last said anything, or was last asked.
    heard: float = 0.0
    asked: float = 0.0
    #: How often it has asked since the server last said anything.
    tries: int = 0
    #: Seconds of the server's silence after which a person is told of it next.
    silent_s: float = SILENT_S
    #: How often it has joined a run, or tried to, that let it go.
    lives: int = 0
    #: The run that it is in, or was let go of and asks for again.
    run: str = ""
    #: The step whose weights are installed, None before the first.
    weights_step: int | None = None
    #: Leases to be computed, all of one round: on the weights at hand, or on those that are on their way here. Other
    #: servers send theirs over connections of their own, so that a lease may be quicker.
    leases: deque[Lease] = field(default_factory=lambda: deque(maxlen=MOST_LEASES))
    #: What has been asked for, and has not come, of the samples of the first lease.
    lacking: SamplesRequest | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened at `now` seconds; return what is to be done, in order."""
        targets = targets_in(TRANSITIONS, self.phase, event)
        if not targets:
            return []
        if not isinstance(event, TimePassed | SamplesLacked):
            self.heard = self.asked = now
            self.tries, self.silent_s = 0, SILENT_S
        effects = self._react(event, now)
        check_reached(targets, event, self.phase)
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due: at once where there is work, None where the phase reads no messages."""
        if self.phase is WorkerPhase.JOINING:
            timeout = self._timeout_s()
            retry = self._next_try(CALL_MOST_S if timeout is None else ASK_MOST_S)
            return retry if timeout is None else min(retry, self.started + timeout)
        if self.phase is WorkerPhase.WAITING:
            return self.heard if self._has_work() else self._next_try(ASK_MOST_S)
        return None

    def _next_try(self, most_s: float) -> float:
        backoff = Backoff(first_s=ASK_S, most_s=most_s, seed=self.facts.join.incarnation)
        return self.asked + backoff.delay_s(self.tries + 1)

    def _timeout_s(self) -> float | None:
        """Return the seconds to wait for a server that is not there, None for ever."""
        given = self.facts.timeout_s
        return self.facts.silence_s if given is None and self.lives else given

    def join(self) -> Join:
        """Return what to ask for a place with: each time that a server let it go, the worker is a new incarnation."""
        join = self.facts.join
        if not self.lives:
            return join
        return msgspec.structs.replace(join, incarnation=f"{join.incarnation}.{self.lives}", run=self.run)

    def _react(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                self.started = now
                return [Send(message=self.join())]
            case Welcomed():
                self.phase = WorkerPhase.PREPARING
                self.run = event.welcome.run
                text = f"joined run {event.welcome.run} as worker {event.welcome.rank}"
                return [Report(text=text), Prepare(welcome=event.welcome)]
            case JoinRefused():
                return self._turned_away(event.refused, now)
            case Evicted():
                return self._begin_anew(event.fenced.reason, now)
            case Prepared():
                self.phase = WorkerPhase.WAITING
                self.shares = bool(event.nonce)
                return [Send(message=Ready(nonce=event.nonce, obstacle=shortened(event.obstacle)))]
            case PreparationFailed():
                return [Send(message=Leave(reason=shortened(event.reason))), *self._end(2, event.reason)]
            case ToldToStandBy():
                return [Report(text=one_line(event.standby.reason))]
            case RunFinished():
                reason = event.finished.reason
                return self._end(1, f"the run failed: {reason}") if reason else self._end(0, "")
            case ProtocolBroken():
                fault = f"the server broke the protocol: {event.fault}"
                return [Send(message=Leave(reason=shortened(fault))), *self._end(1, fault)]
            case Interrupted():
                return [Send(message=Leave(reason="interrupted")), *self._end(130, "interrupted")]
            case ServerAnswered():
                # It asks those that are silent for a while. One may be waiting for a server whose connection broke:
                # that knows the new one only by our word, and the first may be lost.
                return [Greet()]
            case TimePassed():
                return self._join_again(event, now) if self.phase is WorkerPhase.JOINING else self._wait_on(now)
            case WeightsReceived() | LeaseReceived():
                return self._take_work(event)
            case SamplesLacked(lease=lease, asked=asked):
                self.phase, self.lacking, self.asked = WorkerPhase.WAITING, asked, now
                self.leases.appendleft(lease)
                return [Send(message=asked)]
            case SamplesReceived():
                self.lacking = None
                return []
            case SamplesUnkept():
                return [Send(message=Leave(reason=shortened(event.reason))), *self._end(1, event.reason)]
            case LeaseComputed() | LeaseDiverged() | LeaseRaised():
                self.phase = WorkerPhase.WAITING
                return [self._answer(event)]
            case _:
                assert_never(event)

    def _end(self, code: int, reason: str) -> list[Effect]:
        self.phase = WorkerPhase.ENDED
        return [Exit(code=code, reason=reason)]

    def _take_work(self, event: WeightsReceived | LeaseReceived) -> list[Effect]:
        if isinstance(event, WeightsReceived):
            self._begin_step(event.step)
            return []
        lease = event.lease
        if self.shares and (self.weights_step is None or lease.step > self.weights_step):
            self._begin_step(lease.step)
        if self.weights_step is not None and lease.step < self.weights_step:
            return []
        if self.leases and (self.leases[0].work, self.leases[0].step) != (lease.work, lease.step):
            # Leases come in the order of rounds: that of the others is over. An evaluation is so as well when the next
            # step begins, on the same weights.
            self._drop_leases()
        self.leases.append(lease)
        return []

    def _begin_step(self, step: int) -> None:
        """Book that the weights of a step are there."""
        if self.leases and self.leases[0].step < step:
            # The round of the old ones is over: others have computed what is left of it here.
            self._drop_leases()
        self.weights_step = step

    def _has_work(self) -> bool:
        is_there = bool(self.leases) and self.leases[0].step == self.weights_step
        return is_there and self.lacking is None

    def _answer(self, event: LeaseComputed | LeaseDiverged | LeaseRaised) -> Effect:
        match event:
            case LeaseComputed():
                return SendResult(result=event.result)
            case LeaseDiverged(lease=lease):
                diverged = Diverged(
                    work=lease.work,
                    step=lease.step,
                    micro_batch=event.piece,
                    layer=one_line(event.layer, NAME_LIMIT),
                    quantity=event.quantity,
                )
                return Send(message=diverged)
            case LeaseRaised(lease=lease):
                told = shortened(event.traceback)
                return Send(
                    message=ComputeFailed(work=lease.work, step=lease.step, lo=lease.lo, hi=lease.hi, traceback=told)
                )

    def _turned_away(self, refused: Refused, now: float) -> list[Effect]:
        if refused.kind is not RefusalKind.OTHER_RUN:
            return self._end(2, f"the server refused this worker: {refused.reason}")
        if self.phase is not WorkerPhase.JOINING or not self.run:
            # The word of a life before: this one does not ask for that run.
            return []
        self.run = ""
        return self._begin_anew(refused.reason, now)

    def _begin_anew(self, reason: str, now: float) -> list[Effect]:
        """Forget the run, and ask for a place in it as one who was never there."""
        self.phase, self.started = WorkerPhase.JOINING, now
        self.lives += 1
        self._drop_leases()
        self.weights_step = None
        return [Report(text=f"joins anew: {one_line(reason)}"), Send(message=self.join())]

    def _join_again(self, event: TimePassed, now: float) -> list[Effect]:
        if event.is_hopeless:
            return self._end(2, event.obstacle)
        timeout = self._timeout_s()
        if timeout is not None and now >= self.started + timeout:
            why = event.obstacle or "is it running there?"
            return self._end(1, f"no server answered at {self.facts.address} within {timeout:g} s: {why}")
        self.asked = now
        self.tries += 1
        why = f": {event.obstacle}" if event.obstacle else ""
        word = Report(text=f"waiting for a server at {self.facts.address} ({now - self.started:.0f} s){why}")
        # Again, lest the first went down with a server that died.
        return [word, Send(message=self.join())]

    def _drop_leases(self) -> None:
        """Forget what is not to be computed any more."""
        self.leases.clear()
        self.lacking = None

    def _wait_on(self, now: float) -> list[Effect]:
        if self._has_work():
            self.phase = WorkerPhase.COMPUTING
            return [ComputeLease(lease=self.leases.popleft())]
        silent_s = now - self.heard
        limit_s = self.facts.silence_s if self.facts.timeout_s is None else self.facts.timeout_s
        # Twice at least: one that was stopped for an hour has not been listening.
        if silent_s >= limit_s and self.tries >= 2:
            return self._end(1, f"the server at {self.facts.address} has been silent for {silent_s:.0f} s: is it gone?")
        self.asked = now
        self.tries += 1
        questions: list[Effect] = [Send(message=Ping())]
        if self.lacking is not None:
            questions.append(Send(message=self.lacking))
        if silent_s < self.silent_s:
            return questions
        self.silent_s *= 2
        told = f"the server at {self.facts.address} has been silent for {silent_s:.0f} s: trying for {limit_s:g} s"
        return [Report(text=told), *questions]
