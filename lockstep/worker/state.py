"""The worker decides what to do next. No socket, clock, file or array; no state of the run.

`handle(event, now)` returns what is to be done; `deadline()` says when `TimePassed` is due. How it joins and leaves a
run is the client's part.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from lockstep.common.client.client import Client, ClientConfig, ClientPhase
from lockstep.common.client.events_and_effects import ClientEvent, Evicted, Prepared, SendToServer
from lockstep.common.errors import FailureKind, ProtocolError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import (
    NAME_LIMIT,
    ComputeFailed,
    Diverged,
    Dropped,
    Lease,
    Leave,
    Ready,
    SamplesRequest,
    SliceLease,
    Withdrawal,
    shortened,
)
from lockstep.common.statemachine.events_and_effects import Interrupted, Report, TimePassed
from lockstep.common.statemachine.transitions import (
    IGNORED,
    ILLEGAL,
    TransitionTable,
    check_reached,
    table_of,
    targets_in,
)
from lockstep.worker.effects import (
    AdvanceSlice,
    AdvanceStage,
    ComputeLease,
    Effect,
    IntroduceToShards,
    PrepareSteps,
    SendResult,
)
from lockstep.worker.events import (
    Event,
    InboxEmptied,
    LeaseComputed,
    LeaseDiverged,
    LeaseRaised,
    LeaseReceived,
    LeaseStopped,
    LeaseWithdrawn,
    MemoryLost,
    MultiStepLeaseReceived,
    MultiStepWithdrawn,
    PartDue,
    SamplesMissing,
    SamplesNotStored,
    SamplesReceived,
    ServerPinged,
    SliceEnded,
    SliceLeaseReceived,
    StageDone,
    StageDue,
    StageFailed,
    StageNotDone,
    StandbyRequested,
    WeightsReceived,
    WorkEvent,
)
from lockstep.worker.multi_step import MultiStepProgress

#: Seconds after which a server that went silent counts as gone: it may be restarted meanwhile.
SILENCE_S = 600.0

#: Leases that may wait, of which a server sends a few: if one sends more, the first ones are forgotten.
MOST_LEASES = 1024


class WorkerPhase(Enum):
    """The phases of a worker."""

    #: It is not in a run, or not any more.
    OUTSIDE = "outside"
    #: It has no lease, or not what it needs to compute one.
    WAITING = "waiting"
    #: It computes the micro-batches of a lease.
    COMPUTING = "computing"
    #: It makes a slice of an update.
    UPDATING = "updating"
    #: It makes steps with another worker.
    MULTI_STEP = "making steps"


_OUTSIDE, _WAITING = frozenset({WorkerPhase.OUTSIDE}), frozenset({WorkerPhase.WAITING})
_COMPUTING, _UPDATING = frozenset({WorkerPhase.COMPUTING}), frozenset({WorkerPhase.UPDATING})
_MULTI_STEP = frozenset({WorkerPhase.MULTI_STEP})

#: For each event, what may follow in the phases OUTSIDE, WAITING, COMPUTING, UPDATING, MULTI_STEP. While it computes or
#: updates, messages wait: the shell looks only whether the lease at hand is withdrawn. In a multi-step lease the server
#: sends nothing else before it has ended that.
TRANSITIONS: TransitionTable[WorkerPhase, WorkEvent] = table_of(
    WorkerPhase,
    {
        StandbyRequested: (IGNORED, _WAITING, ILLEGAL, ILLEGAL, _MULTI_STEP),
        WeightsReceived: (IGNORED, _WAITING, ILLEGAL, ILLEGAL, IGNORED),
        LeaseReceived: (IGNORED, _WAITING, ILLEGAL, ILLEGAL, IGNORED),
        LeaseWithdrawn: (IGNORED, _WAITING, ILLEGAL, ILLEGAL, _MULTI_STEP),
        LeaseStopped: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, ILLEGAL),
        SliceLeaseReceived: (IGNORED, _UPDATING, ILLEGAL, ILLEGAL, IGNORED),
        PartDue: (IGNORED, ILLEGAL, ILLEGAL, _UPDATING, ILLEGAL),
        SliceEnded: (IGNORED, ILLEGAL, ILLEGAL, _WAITING, ILLEGAL),
        MemoryLost: (IGNORED, _OUTSIDE, ILLEGAL, ILLEGAL, ILLEGAL),
        InboxEmptied: (IGNORED, _WAITING | _COMPUTING, ILLEGAL, ILLEGAL, ILLEGAL),
        LeaseComputed: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, ILLEGAL),
        LeaseDiverged: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, ILLEGAL),
        LeaseRaised: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, ILLEGAL),
        SamplesMissing: (IGNORED, ILLEGAL, _WAITING, ILLEGAL, ILLEGAL),
        SamplesReceived: (IGNORED, _WAITING, ILLEGAL, ILLEGAL, IGNORED),
        SamplesNotStored: (IGNORED, _OUTSIDE, ILLEGAL, ILLEGAL, IGNORED),
        MultiStepLeaseReceived: (IGNORED, _MULTI_STEP, ILLEGAL, ILLEGAL, IGNORED),
        MultiStepWithdrawn: (IGNORED, _WAITING, ILLEGAL, ILLEGAL, _WAITING | _MULTI_STEP),
        StageDue: (IGNORED, ILLEGAL, ILLEGAL, ILLEGAL, _MULTI_STEP),
        StageDone: (IGNORED, ILLEGAL, ILLEGAL, ILLEGAL, _MULTI_STEP | _WAITING),
        StageNotDone: (IGNORED, ILLEGAL, ILLEGAL, ILLEGAL, _MULTI_STEP | _WAITING),
        StageFailed: (IGNORED, ILLEGAL, ILLEGAL, ILLEGAL, _WAITING),
        ServerPinged: (IGNORED, _WAITING, ILLEGAL, ILLEGAL, _MULTI_STEP),
    },
)


#: What a worker notices by itself, without a message.
NOT_FROM_SERVER = SamplesMissing | InboxEmptied | StageDue | StageDone | StageNotDone | StageFailed

#: The phases in which no message is read.
BUSY = (WorkerPhase.COMPUTING, WorkerPhase.UPDATING)


@dataclass
class WorkerState:
    """The state of a worker; see `TRANSITIONS` for the table that it obeys."""

    config: ClientConfig
    client: Client = field(init=False)
    phase: WorkerPhase = WorkerPhase.OUTSIDE
    #: Whether it computes in memory that the server sees.
    shares: bool = False
    #: The step whose weights are installed, None before the first.
    weights_step: int | None = None
    #: Leases to be computed, all of one round: on the weights at hand, or on those that are on their way here. Other
    #: servers send theirs over connections of their own, so that a lease may be quicker.
    leases: deque[Lease] = field(default_factory=lambda: deque(maxlen=MOST_LEASES))
    #: What was requested, and has not come, of the samples of the first lease.
    requested: SamplesRequest | None = None
    #: The lease that was stopped last, with how many of its micro-batches were computed until then.
    stopped: tuple[Lease, int] | None = None
    #: The slice of an update that is being made, part by part.
    slice_lease: SliceLease | None = None
    #: The lease of several steps that is being made, and how far.
    progress: MultiStepProgress | None = None

    def __post_init__(self) -> None:
        self.client = Client(self.config, role="worker", may_rejoin=True)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Handle what happened at `now` seconds; return what is to be done, in order."""
        if not isinstance(event, WorkEvent):
            return self._as_client(event, now)
        targets = targets_in(TRANSITIONS, self.phase, event)
        if not targets:
            return []
        if not isinstance(event, NOT_FROM_SERVER):
            self.client.on_message(now)
        effects = self._react(event, now)
        check_reached(targets, event, self.phase)
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due, None in phases that wait for nothing."""
        if self.progress is not None:
            return self.progress.due
        return None if self.phase in BUSY else self.client.deadline()

    def has_work(self) -> bool:
        """Tell whether a lease could be computed now: then `InboxEmptied` is due as soon as it is true."""
        is_due = bool(self.leases) and self.leases[0].step == self.weights_step
        return is_due and self.phase is WorkerPhase.WAITING and self.requested is None

    def is_updating(self) -> bool:
        """Tell whether a slice of an update is being made: then `PartDue` is due before anything else."""
        return self.phase is WorkerPhase.UPDATING

    def _as_client(self, event: ClientEvent, now: float) -> list[Effect]:
        if self.phase in BUSY and not isinstance(event, Interrupted):
            raise ProtocolError(f"{type(event).__name__} while {self.phase.value}: not a transition of the table")
        effects: list[Effect] = [*self.client.handle(event, now)]
        is_joined = self.client.phase is ClientPhase.JOINED
        if not is_joined and self.phase is not WorkerPhase.OUTSIDE:
            self.phase, self.weights_step = WorkerPhase.OUTSIDE, None
            self.stopped = self.slice_lease = self.progress = None
            self._drop_leases()
        elif is_joined and isinstance(event, Prepared) and isinstance(event.ready, Ready):
            self.phase, self.shares = WorkerPhase.WAITING, bool(event.ready.nonce)
        elif is_joined and isinstance(event, TimePassed) and self.requested is not None:
            effects.append(SendToServer(message=self.requested))
        return effects

    def _react(self, event: WorkEvent, now: float) -> list[Effect]:
        match event:
            case StandbyRequested():
                return [Report(text=one_line(event.standby.reason))]
            case ServerPinged():
                # It pings those that are silent for a while. One may be waiting for a shard whose connection broke: the
                # shard learns of the new one only from us, and what it was sent first may be lost.
                return [IntroduceToShards()]
            case WeightsReceived(step=step):
                self._begin_step(step)
                return []
            case LeaseReceived(lease=lease):
                self._add_lease(lease)
                return []
            case LeaseWithdrawn(withdrawal=withdrawal):
                return [SendToServer(message=self._drop(withdrawal))]
            case LeaseStopped(lease=lease, computed=computed):
                self.phase, self.stopped = WorkerPhase.WAITING, (lease, computed)
                return []
            case SliceLeaseReceived(lease=slice_lease):
                self.phase, self.slice_lease = WorkerPhase.UPDATING, slice_lease
                return []
            case PartDue():
                assert self.slice_lease is not None  # it is being made
                return [AdvanceSlice(lease=self.slice_lease)]
            case SliceEnded(result=result):
                self.phase, self.slice_lease = WorkerPhase.WAITING, None
                return [SendToServer(message=result)]
            case MemoryLost(reason=reason):
                # Perhaps since the run is over; otherwise it goes on over the socket.
                leave = SendToServer(message=Leave(reason=shortened(reason)))
                return [leave, *self._as_client(Evicted(reason=reason), now)]
            case InboxEmptied():
                return self._compute_next()
            case SamplesMissing(lease=lease, request=request):
                self.phase, self.requested, self.client.asked = WorkerPhase.WAITING, request, now
                self.leases.appendleft(lease)
                return [SendToServer(message=request)]
            case SamplesReceived():
                self.requested = None
                return []
            case SamplesNotStored(reason=reason):
                self.phase = WorkerPhase.OUTSIDE
                return [*self.client.leave(1, reason, FailureKind.PREPARATION)]
            case LeaseComputed() | LeaseDiverged() | LeaseRaised():
                self.phase = WorkerPhase.WAITING
                return [_answer(event)]
            case MultiStepLeaseReceived(lease=lease):
                self._drop_leases()
                self.phase, self.progress = WorkerPhase.MULTI_STEP, MultiStepProgress.begin(lease, now)
                return [PrepareSteps(lease=lease)]
            case _:
                return self._react_in_multi_step(event, now)

    def _react_in_multi_step(
        self, event: MultiStepWithdrawn | StageDue | StageDone | StageNotDone | StageFailed, now: float
    ) -> list[Effect]:
        progress = self.progress
        if progress is None:
            return []  # it was over before it was cancelled
        match event:
            case StageDue():
                return [AdvanceStage(lease=progress.lease, step=progress.step, stage=progress.stage)]
            case StageDone():
                is_over = progress.advance(now)
            case StageNotDone():
                is_over = not progress.put_off(now)
            case MultiStepWithdrawn(number=number):
                is_over = number == progress.lease.number
            case StageFailed():
                is_over = True
            case _:
                assert_never(event)
        if not is_over:
            return []
        self.phase, self.progress, self.weights_step = WorkerPhase.WAITING, None, progress.step
        return [SendToServer(message=progress.ended())]

    def _add_lease(self, lease: Lease) -> None:
        if self.shares and (self.weights_step is None or lease.step > self.weights_step):
            self._begin_step(lease.step)
        if self.weights_step is not None and lease.step < self.weights_step:
            return
        if self.leases and (self.leases[0].work, self.leases[0].step) != (lease.work, lease.step):
            # Leases come in the order of rounds: that of the others is over. An evaluation is over as well when the
            # next step begins, on the same weights.
            self._drop_leases()
        self.leases.append(lease)

    def _drop(self, withdrawal: Withdrawal) -> Dropped:
        """Forget a lease; return the answer, which the server awaits whatever became of it."""
        if self.leases and is_of(self.leases[0], withdrawal):
            self.requested = None
        self.leases = deque((lease for lease in self.leases if not is_of(lease, withdrawal)), MOST_LEASES)
        lease, computed = self.stopped or (None, 0)
        is_stopped = lease is not None and is_of(lease, withdrawal)
        self.stopped = None if is_stopped else self.stopped
        return Dropped(
            work=withdrawal.work,
            step=withdrawal.step,
            number=withdrawal.number,
            computed=computed if is_stopped else 0,
        )

    def _begin_step(self, step: int) -> None:
        """Record that the weights of a step are there."""
        if self.leases and self.leases[0].step < step:
            # The round of the old ones is over: others have computed the rest of it.
            self._drop_leases()
        self.weights_step = step

    def _compute_next(self) -> list[Effect]:
        if not self.has_work():
            return []
        self.phase = WorkerPhase.COMPUTING
        return [ComputeLease(lease=self.leases.popleft())]

    def _drop_leases(self) -> None:
        """Forget what is not to be computed any more."""
        self.leases.clear()
        self.requested = None


def is_of(lease: Lease, withdrawal: Withdrawal) -> bool:
    """Tell whether it is this lease that is withdrawn."""
    key = (withdrawal.work, withdrawal.step, withdrawal.number)
    return (lease.work, lease.step, lease.number) == key


def _answer(event: LeaseComputed | LeaseDiverged | LeaseRaised) -> Effect:
    match event:
        case LeaseComputed(result=result):
            return SendResult(result=result)
        case LeaseDiverged(lease=lease):
            diverged = Diverged(
                work=lease.work,
                step=lease.step,
                micro_batch=event.micro_batch,
                layer=one_line(event.layer, NAME_LIMIT),
                quantity=event.quantity,
            )
            return SendToServer(message=diverged)
        case LeaseRaised(lease=lease):
            text = shortened(event.traceback)
            failed = ComputeFailed(work=lease.work, step=lease.step, lo=lease.lo, hi=lease.hi, traceback=text)
            return SendToServer(message=failed)
