"""A worker's state to be driven by hand, with the time told."""

from dataclasses import dataclass, field

import msgspec

from common.job.job import Job
from common.protocol.messages import PROTOCOL_VERSION, Join, Lease, Message, Result, Welcome, Work
from common.protocol.numerics import fingerprint
from worker import events
from worker.effects import Effect, Exit, Report, Send
from worker.state import WorkerConfig, WorkerState

DIGEST = "0123456789abcdef" * 4
JOIN = Join(protocol=PROTOCOL_VERSION, incarnation="a", host="h", pid=1, fingerprint=fingerprint())
WELCOME = Welcome(rank=2, run="blue", job=Job(), layout=DIGEST, dataset=DIGEST, source="")


def lease_of(step: int, lo: int = 0, hi: int = 1, work: Work = "train") -> Lease:
    return Lease(work=work, step=step, lo=lo, hi=hi)


def result_of(lease: Lease) -> Result:
    return Result(
        work=lease.work, step=lease.step, lo=lease.lo, hi=lease.hi, loss_sum=1.0, correct=1, count=1, compute_s=0.1
    )


@dataclass
class Drive:
    """A worker's state, and the time."""

    timeout_s: float | None = None
    incarnation: str = JOIN.incarnation
    now: float = 100.0
    state: WorkerState = field(init=False)

    def __post_init__(self) -> None:
        join = msgspec.structs.replace(JOIN, incarnation=self.incarnation)
        self.state = WorkerState(WorkerConfig(address="tcp://h:1", join=join, timeout_s=self.timeout_s))

    def happen(self, event: events.Event) -> list[Effect]:
        return self.state.handle(event, self.now)

    def start(self) -> list[Effect]:
        return self.happen(events.Started())

    def enter(self) -> list[Effect]:
        """Start, be welcomed, and be prepared."""
        return self.start() + self.happen(events.Welcomed(welcome=WELCOME)) + self.happen(events.Prepared())

    def weights(self, step: int) -> list[Effect]:
        return self.happen(events.WeightsReceived(step=step))

    def lease(self, lease: Lease) -> list[Effect]:
        return self.happen(events.LeaseReceived(lease=lease))

    def pass_time(self, seconds: float) -> list[Effect]:
        """Let time pass, waking the state at each of its deadlines."""
        end, effects = self.now + seconds, list[Effect]()
        while (due := self.state.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            effects += self.happen(events.TimePassed())
        self.now = end
        return effects


def sent(effects: list[Effect]) -> list[Message]:
    """Return the messages that carry no array."""
    return [effect.message for effect in effects if isinstance(effect, Send)]


def said(effects: list[Effect]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, Report)]


def exits(effects: list[Effect]) -> list[Exit]:
    return [effect for effect in effects if isinstance(effect, Exit)]
