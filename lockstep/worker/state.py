"""The worker decides what to do next. No socket, clock, file or array; no state of the run.

Messages of the server are events as they are, and so are the answers to leases. A message that may be carried out is
itself the effect. The client joins a run and leaves it.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from lockstep.common.errors import FailureKind, ProtocolError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import (
    ComputeFailed,
    Diverged,
    Dropped,
    Eviction,
    Lease,
    Leave,
    MultiStepLease,
    Ping,
    Ready,
    Result,
    Samples,
    SamplesRequest,
    Spare,
    Withdrawal,
    shortened,
)
from lockstep.common.statemachine.client import (
    Client,
    ClientConfig,
    ClientEffect,
    ClientEvent,
    ClientPhase,
    SendToServer,
)
from lockstep.common.statemachine.machine import IGNORED, Interrupted, Machine, Report, TimePassed, stays, table_of

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
    #: It makes steps without the server.
    MULTI_STEP = "making steps"


# Events


class WeightsReceived(Struct, frozen=True, kw_only=True):
    """All weights of a step are in their slot."""

    step: int


class InboxEmptied(Struct, frozen=True, kw_only=True):
    """No message is waiting: if there is work, it is time to compute."""


class LeaseStopped(Struct, frozen=True, kw_only=True):
    """The current lease was given up because it is withdrawn, after some of its micro-batches were computed."""

    lease: Lease
    computed: int


class MemoryLost(Struct, frozen=True, kw_only=True):
    """The memory that a lease names cannot be mapped."""

    reason: str


class SamplesMissing(Struct, frozen=True, kw_only=True):
    """A lease cannot be computed yet: samples are missing, of which these are to be requested next."""

    lease: Lease
    request: SamplesRequest


class SamplesNotStored(Struct, frozen=True, kw_only=True):
    """Samples came that cannot be stored."""

    reason: str


#: The messages of the server for a worker that is in the run.
Request = Spare | Lease | Withdrawal | Samples | MultiStepLease | Ping
WorkEvent = (
    Request
    | WeightsReceived
    | InboxEmptied
    | Result
    | Diverged
    | ComputeFailed
    | LeaseStopped
    | MemoryLost
    | SamplesMissing
    | SamplesNotStored
    | Dropped
)
Event = WorkEvent | ClientEvent

#: Compute a lease, answered by its result, `LeaseStopped` or `SamplesMissing`. Begin with a multi-step lease, or make
#: nothing more of it, both answered by `Dropped`. After a ping, introduce this worker to the run's other servers.
WorkEffect = Lease | MultiStepLease | Withdrawal | Ping
Effect = WorkEffect | ClientEffect

_OUTSIDE, _WAITING, _COMPUTING, _MULTI_STEP = WorkerPhase

#: The phase of a worker that is in no run, which ignores this.
_OUT = {_OUTSIDE: IGNORED}

#: The same, for messages that are too late for a multi-step lease, in which the server sends nothing else.
_LATE = {_OUTSIDE: IGNORED, _MULTI_STEP: IGNORED}

#: The transitions. While it computes, messages wait: the shell only looks for a withdrawal of the current lease.
TRANSITIONS = table_of(
    WorkerPhase,
    {
        Spare: _OUT | stays(_WAITING, _MULTI_STEP),
        WeightsReceived: _LATE | stays(_WAITING),
        Lease: _LATE | stays(_WAITING),
        Withdrawal: _OUT | stays(_WAITING, _MULTI_STEP),
        Samples: _LATE | stays(_WAITING),
        MultiStepLease: _LATE | {_WAITING: {_MULTI_STEP}},
        Ping: _OUT | stays(_WAITING, _MULTI_STEP),
        InboxEmptied: _OUT | {_WAITING: {_WAITING, _COMPUTING}},
        Result: _OUT | {_COMPUTING: {_WAITING}},
        Diverged: _OUT | {_COMPUTING: {_WAITING}},
        ComputeFailed: _OUT | {_COMPUTING: {_WAITING}},
        LeaseStopped: _OUT | {_COMPUTING: {_WAITING}},
        MemoryLost: _OUT | {_WAITING: {_OUTSIDE}},
        SamplesMissing: _OUT | {_COMPUTING: {_WAITING}},
        SamplesNotStored: _LATE | {_WAITING: {_OUTSIDE}},
        Dropped: _OUT | stays(_WAITING) | {_MULTI_STEP: {_WAITING}},
    },
)


#: Events that a worker notices by itself, without a message.
NOT_FROM_SERVER = SamplesMissing | InboxEmptied | Dropped


@dataclass
class WorkerState(Machine[Event, Effect]):
    """The state of a worker."""

    transitions = TRANSITIONS
    config: ClientConfig
    client: Client = field(init=False)
    phase: WorkerPhase = WorkerPhase.OUTSIDE
    #: Whether it computes in memory that the server sees.
    shares: bool = False
    #: The step whose weights are installed, None before the first.
    weights_step: int | None = None
    #: Leases to be computed, all of one round: on the current weights, or on those that are on their way here. Other
    #: servers send theirs over connections of their own, so that a lease may be quicker.
    leases: deque[Lease] = field(default_factory=lambda: deque(maxlen=MOST_LEASES))
    #: The request for samples of the first lease that have not come.
    requested: SamplesRequest | None = None
    #: The lease that was stopped last, with how many of its micro-batches were computed until then.
    stopped: tuple[Lease, int] | None = None
    #: The lease of several steps that is being made.
    steps: MultiStepLease | None = None

    def __post_init__(self) -> None:
        self.client = Client(self.config, role="worker")

    def handle(self, event: Event, now: float) -> list[Effect]:
        if not isinstance(event, WorkEvent):
            return self._as_client(event, now)
        if self.transitions[self.phase, type(event)] and not isinstance(event, NOT_FROM_SERVER):
            self.client.on_message(now)
        return self.obey(event, now)

    def deadline(self) -> float | None:
        return None if self.is_busy() else self.client.deadline()

    def is_busy(self) -> bool:
        """Tell whether a lease is being computed, or several steps: then its shell knows the next deadline."""
        return self.phase in (WorkerPhase.COMPUTING, WorkerPhase.MULTI_STEP)

    def has_work(self) -> bool:
        """Tell whether a lease could be computed now: then `InboxEmptied` is due as soon as it is true."""
        is_due = bool(self.leases) and self.leases[0].step == self.weights_step
        return is_due and self.phase is WorkerPhase.WAITING and self.requested is None

    def _as_client(self, event: ClientEvent, now: float) -> list[Effect]:
        if self.phase is WorkerPhase.COMPUTING and not isinstance(event, Interrupted):
            raise ProtocolError(f"{type(event).__name__} while {self.phase.value}: not a transition of the table")
        effects: list[Effect] = [*self.client.handle(event, now)]
        is_joined = self.client.phase is ClientPhase.JOINED
        if not is_joined and self.phase is not WorkerPhase.OUTSIDE:
            self.phase, self.weights_step = WorkerPhase.OUTSIDE, None
            self.stopped = self.steps = None
            self._drop_leases()
        elif is_joined and isinstance(event, Ready):
            self.phase, self.shares = WorkerPhase.WAITING, bool(event.nonce)
        elif is_joined and isinstance(event, TimePassed) and self.requested is not None:
            effects.append(SendToServer(message=self.requested))
        return effects

    def react(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Spare(reason=reason):
                return [Report(text=one_line(reason))]
            case Ping():
                # It pings those that are silent for a while. One may be waiting for a shard whose connection broke: the
                # shard learns of the new one only from us, and what it was sent first may be lost.
                return [event]
            case WeightsReceived(step=step):
                self._begin_step(step)
                return []
            case Lease():
                self._add_lease(event)
                return []
            case Withdrawal(number=number):
                is_current = self.steps is not None and self.steps.number == number
                return [event if is_current else SendToServer(message=self._drop(number))]
            case Samples():
                self.requested = None
                return []
            case MultiStepLease():
                return self._begin_steps(event)
            case Dropped():
                return self._end_steps(event)
            case InboxEmptied():
                return self._compute_next()
            case Result() | Diverged() | ComputeFailed() | LeaseStopped() | SamplesMissing():
                return self._end_lease(event, now)
            case MemoryLost(reason=reason):
                # Perhaps since the run is over; otherwise it goes on over the socket.
                leave = SendToServer(message=Leave(reason=shortened(reason)))
                return [leave, *self._as_client(Eviction(reason=reason), now)]
            case SamplesNotStored(reason=reason):
                self.phase = WorkerPhase.OUTSIDE
                return [*self.client.leave(1, reason, FailureKind.PREPARATION)]
            case _:
                raise AssertionError(event)  # those of the client never come here

    def _end_lease(
        self, end: Result | Diverged | ComputeFailed | LeaseStopped | SamplesMissing, now: float
    ) -> list[Effect]:
        """Wait for more work, and answer the current lease unless it was stopped."""
        self.phase = WorkerPhase.WAITING
        match end:
            case LeaseStopped(lease=lease, computed=computed):
                self.stopped = (lease, computed)
                return []
            case SamplesMissing(lease=lease, request=request):
                self.requested, self.client.asked = request, now
                self.leases.appendleft(lease)
                return [SendToServer(message=request)]
            case _:
                return [SendToServer(message=end)]

    def _begin_steps(self, lease: MultiStepLease) -> list[Effect]:
        self._drop_leases()
        self.phase, self.steps = WorkerPhase.MULTI_STEP, lease
        return [lease]

    def _end_steps(self, end: Dropped) -> list[Effect]:
        """Answer the current multi-step lease, of which the team makes nothing more."""
        if self.steps is None:
            return []  # it was over before it was withdrawn
        self.phase, self.steps = WorkerPhase.WAITING, None
        return [SendToServer(message=end)]

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

    def _drop(self, number: int) -> Dropped:
        """Forget a lease; return the answer, which the server awaits whatever became of it."""
        computed = 0
        if self.leases and self.leases[0].number == number:
            self.requested = None
        self.leases = deque((lease for lease in self.leases if lease.number != number), MOST_LEASES)
        if self.stopped is not None and self.stopped[0].number == number:
            (_, computed), self.stopped = self.stopped, None
        return Dropped(number=number, computed=computed)

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
        return [self.leases.popleft()]

    def _drop_leases(self) -> None:
        """Forget all leases, which are not to be computed any more."""
        self.leases.clear()
        self.requested = None
