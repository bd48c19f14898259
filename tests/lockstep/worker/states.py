"""A worker's state to be driven by hand, with the time given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lockstep.common.protocol.messages import Lease, MultiStepLease, Result, Work
from lockstep.common.runtime.clock import ThreadClock
from lockstep.common.statemachine.machine import Started, TimePassed
from lockstep.common.transport.port import ClientPort, Dial
from lockstep.worker.connections import ServerConnections
from lockstep.worker.setup import Loader, gather
from lockstep.worker.shell import WorkerShell
from lockstep.worker.state import (
    Effect,
    Event,
    InboxEmptied,
    WeightsReceived,
    WorkerPhase,
    WorkerState,
)
from lockstep.worker.team.session import TeamContext
from tests.lockstep.common.statemachine.clients import PREPARED, WELCOME, config_of


def no_dial(address: str, public: str = "") -> ClientPort:
    """Dial no other server: the run has one."""
    raise AssertionError(address)


def worker_at(
    port: ClientPort,
    state: WorkerState,
    clock: ThreadClock,
    load: Loader,
    say: Callable[[str], None],
    *,
    dial: Dial = no_dial,
    **context: Any,
) -> WorkerShell:
    """Return a worker with a connection to its server, and what else its team has."""
    around = TeamContext(clock=clock, say=say, **context)
    return WorkerShell(state, ServerConnections(port, dial), around, partial(gather, load=load))


def lease_of(step: int, lo: int = 0, hi: int = 1, work: Work = "train") -> Lease:
    return Lease(work=work, step=step, lo=lo, hi=hi)


def result_of(lease: Lease) -> Result:
    return Result(work=lease.work, step=lease.step, lo=lease.lo, hi=lease.hi, loss_sum=1.0, count=1, compute_s=0.1)


LEASE = lease_of(3)

#: Two steps that the worker makes by itself.
MULTI_STEP = MultiStepLease(number=2, incarnation="life", first=3, last=5, reads=0)


@dataclass
class Drive:
    """A worker's state, and the time."""

    now: float = 100.0
    state: WorkerState = field(default_factory=lambda: WorkerState(config_of()))

    def dispatch(self, event: Event) -> list[Effect]:
        return self.state.handle(event, self.now)

    def enter(self) -> list[Effect]:
        """Start, be welcomed, and be prepared."""
        return self.dispatch(Started()) + self.dispatch(WELCOME) + self.dispatch(PREPARED)

    def weights(self, step: int) -> list[Effect]:
        return self.dispatch(WeightsReceived(step=step))

    def lease(self, lease: Lease) -> list[Effect]:
        return self.dispatch(lease)

    def empty_inbox(self) -> list[Effect]:
        return self.dispatch(InboxEmptied())

    def pass_time(self, seconds: float) -> list[Effect]:
        """Let time pass, waking the state at each of its deadlines."""
        end, effects = self.now + seconds, list[Effect]()
        while (due := self.state.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            effects += self.dispatch(TimePassed())
        self.now = end
        return effects


def drive_in(phase: WorkerPhase) -> Drive:
    """Return a worker that has come to a phase by the usual way."""
    drive = Drive()
    if phase is not WorkerPhase.OUTSIDE:
        drive.enter()
    if phase is WorkerPhase.COMPUTING:
        drive.weights(3)
        drive.lease(LEASE)
        drive.empty_inbox()
    if phase is WorkerPhase.MULTI_STEP:
        drive.dispatch(MULTI_STEP)
    assert drive.state.phase is phase
    return drive
