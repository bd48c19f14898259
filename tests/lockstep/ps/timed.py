"""Workers in virtual time, each with its own speed, at the real coordinator: how long steps take, and who does what."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import msgspec
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Dropped, Lease, Ready, Withdrawal
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect, Send, UpdateWeights
from lockstep.ps.coordinator.parts.assembly import all_parts
from lockstep.ps.records.ledger import UnusedWork
from lockstep.ps.run.plan import plan_of
from tests.lockstep.ps.runs import facts_of, join_of, peer_of, result_of

#: Virtual seconds of a micro-batch on a worker of speed 1, and those that a message takes.
EACH_S, LATENCY_S = 0.01, 0.0001


@dataclass
class TimedWorker:
    """A worker that computes its leases one after the other, and stops where one is withdrawn."""

    number: int
    #: How long a micro-batch takes that begins at a time.
    takes_s: Callable[[float], float]
    leases: deque[Lease] = field(default_factory=deque)
    #: The micro-batches of the first lease that are done, and when the one at hand will be; None if it waits.
    done: int = 0
    due: float | None = None
    #: Messages that it reads at the next micro-batch.
    inbox: list[Lease | Withdrawal] = field(default_factory=list)


@dataclass
class TimedRun:
    """A run in virtual time."""

    speeds: Sequence[Callable[[float], float]]
    micro_batches: int
    steps: int = 1000
    #: Cores of the machine that all are on: by default one for each.
    cores: int | None = None
    now: float = 0.0
    coordinator: Coordinator = field(init=False)
    workers: list[TimedWorker] = field(init=False)
    #: When each step was updated.
    updated: list[float] = field(default_factory=list)
    #: The leases that were sent, in order: (worker, lease).
    sent: list[tuple[int, Lease]] = field(default_factory=list)
    #: Micro-batches that were computed, or begun, in vain.
    in_vain: int = 0
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        # One epoch, so that no evaluation comes between.
        job = Job(model="linear", global_batch=self.micro_batches, micro_batches=self.micro_batches, epochs=1)
        info = facts_of(job, min_workers=len(self.speeds))
        plan = plan_of(job, self.steps * self.micro_batches, 1)
        self.coordinator = Coordinator(replace(info, plan=plan), all_parts())
        self.workers = [TimedWorker(number, takes_s) for number, takes_s in enumerate(self.speeds)]
        cores = len(self.speeds) if self.cores is None else self.cores
        for worker in self.workers:
            join = msgspec.structs.replace(join_of(worker.number), machine="one", cores=list(range(cores)))
            self._handle(events.Received(peer=peer_of(worker.number), message=join))
        for worker in self.workers:
            self._handle(
                events.Received(peer=peer_of(worker.number), message=Ready(nonce="0" * 32, rank=worker.number, part=""))
            )

    def run(self, steps: int) -> float:
        """Run on for so many steps; return the mean seconds of each."""
        first, began = len(self.updated), self.now
        while len(self.updated) < first + steps:
            self._turn()
        return (self.updated[-1] - (self.updated[first - 1] if first else began)) / steps

    def _turn(self) -> None:
        deadline = self.coordinator.deadline()
        if deadline is not None and (not self._agenda or deadline < self._agenda[0][0]):
            self.now = max(self.now, deadline)
            self._handle(events.TimePassed())
            return
        self.now, _, action = heappop(self._agenda)
        action()

    def _at(self, time: float, action: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._agenda, (time, self._count, action))

    def _handle(self, event: events.Event) -> None:
        account = self.coordinator.state.account
        before = len(account.entries)
        effects = self.coordinator.handle(event, self.now)
        self.in_vain += sum(one.hi - one.lo for one in account.entries[before:] if isinstance(one, UnusedWork))
        self.coordinator.validate()
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, UpdateWeights):
            self.updated.append(self.now)
            self._handle(events.StepUpdated(step=effect.step))
        elif isinstance(effect, Send) and isinstance(effect.message, Lease | Withdrawal):
            worker, message = self.workers[int.from_bytes(effect.peer, "big")], effect.message
            if isinstance(message, Lease):
                self.sent.append((worker.number, message))
            self._at(self.now + LATENCY_S, lambda: self._receive(worker, message))

    def _receive(self, worker: TimedWorker, message: Lease | Withdrawal) -> None:
        worker.inbox.append(message)
        if worker.due is None:
            self._read(worker)
            self._begin(worker)

    def _read(self, worker: TimedWorker) -> None:
        """Let a worker read its messages, between two micro-batches."""
        for message in worker.inbox:
            if isinstance(message, Lease):
                worker.leases.append(message)
                continue
            computed = 0
            for lease in list(worker.leases):
                if lease.number == message.number:
                    computed = worker.done if lease is worker.leases[0] else 0
                    worker.done = 0 if lease is worker.leases[0] else worker.done
                    worker.leases.remove(lease)
            dropped = Dropped(number=message.number, computed=computed)
            self._reply(events.Received(peer=peer_of(worker.number), message=dropped))
        worker.inbox.clear()

    def _begin(self, worker: TimedWorker) -> None:
        worker.due = None
        if worker.leases:
            worker.due = self.now + worker.takes_s(self.now)
            self._at(worker.due, lambda: self._compute(worker))

    def _compute(self, worker: TimedWorker) -> None:
        """Let a worker have computed a micro-batch."""
        worker.done += 1
        lease = worker.leases[0]
        if worker.done == lease.hi - lease.lo:
            worker.leases.popleft()
            worker.done = 0
            self._reply(events.Received(peer=peer_of(worker.number), message=result_of(lease)))
        self._read(worker)
        self._begin(worker)

    def _reply(self, event: events.Event) -> None:
        self._at(self.now + LATENCY_S, lambda: self._handle(event))

    def leased_to(self, worker: int, step: int) -> list[Node]:
        """Return what a worker was leased in a step."""
        return [
            Node(lease.lo, lease.hi)
            for number, lease in self.sent
            if number == worker and (lease.work, lease.step) == ("train", step)
        ]


def steady(speed: float) -> Callable[[float], float]:
    """Return a worker that is so many times as fast as one of speed 1."""
    return lambda now: EACH_S / speed


def stalling(on_s: float, off_s: float, *, first: float = 0.0) -> Callable[[float], float]:
    """Return a worker of speed 1 that works for `on_s` seconds and then stands still for `off_s`, from `first` on."""

    def takes_s(now: float) -> float:
        left, spent = EACH_S, 0.0
        while left > 0.0:
            at = (now + spent - first) % (on_s + off_s) if now + spent >= first else 0.0
            if at >= on_s - 1e-12:
                spent += on_s + off_s - at
                continue
            worked = min(left, on_s - at)
            left, spent = left - worked, spent + worked
        return spent

    return takes_s


def changing(speed: float, *, until: float, then: float) -> Callable[[float], float]:
    """Return a worker whose speed changes at a time."""
    return lambda now: EACH_S / (speed if now < until else then)
