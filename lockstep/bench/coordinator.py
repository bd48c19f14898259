"""Drives the real coordinator with simulated workers in virtual time: what its decisions cost, by their number.

Simulated is what surrounds it. A worker computes its leases in turn, some workers are slower than others, and results
of a step that is over come late, as they do from real ones.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from common.job.job import Job
from common.protocol.messages import PROTOCOL_VERSION, Join, Lease, Result
from common.protocol.numerics import fingerprint
from common.runtime.clock import Clock
from lockstep.bench.reports.rows import CoordinatorRow
from ps.coordinator import events
from ps.coordinator.coordinator import Coordinator
from ps.coordinator.effects import Send
from ps.run.info import RunInfo
from ps.run.plan import plan_of

#: Virtual seconds of computing one piece, of a message on its way, and how much longer the slowest worker takes.
PIECE_S, WAY_S, SPREAD = 0.01, 0.0001, 0.2

#: Its multiples, as far as they lie between whole numbers, spread evenly: the workers' speeds.
GOLDEN = 0.6180339887498949

#: Most micro-batches of a job.
MOST_PIECES = 4096

DIGEST = "0" * 64


@dataclass
class Crowd:
    """A run with so many simulated workers, all of which joined at the beginning."""

    workers: int
    pieces: int
    steps: int
    #: Tells what decisions take, and has nothing to do with the virtual time.
    clock: Clock
    coordinator: Coordinator = field(init=False)
    #: Virtual seconds.
    now: float = 0.0
    #: Events handled since the first step began, and the real seconds that this took.
    handled: int = 0
    decide_s: float = 0.0
    #: What is on its way to the coordinator: when it arrives, its number, what it is.
    _coming: list[tuple[float, int, events.Event]] = field(default_factory=list)
    _sent: int = 0
    #: When each worker has computed all its leases.
    _free_at: dict[bytes, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        job = Job(model="linear", global_batch=self.pieces, micro_batches=self.pieces, steps=self.steps)
        facts = RunInfo(
            run="crowd",
            job=job,
            plan=plan_of(job, self.pieces * self.steps, 1),
            training_samples=self.pieces * self.steps,
            layout=DIGEST,
            dataset=DIGEST,
            source="",
            fingerprint=fingerprint(),
            min_workers=self.workers,
        )
        self.coordinator = Coordinator(facts)
        self._come()

    def run(self) -> None:
        """Run to the end."""
        while not self.coordinator.is_over():
            self.turn()

    def run_to_first_step(self) -> None:
        """Run until all workers are there."""
        while not self.coordinator.is_running():
            self.turn()

    def _come(self) -> None:
        """Let all workers join, and be prepared a second later."""
        for number in range(self.workers):
            peer = number.to_bytes(4, "big")
            join = Join(
                protocol=PROTOCOL_VERSION, incarnation=str(number), host="crowd", pid=number, fingerprint=fingerprint()
            )
            self._send(0.0, events.WorkerJoined(peer=peer, join=join))
            self._send(1.0, events.WorkerPrepared(peer=peer))

    def turn(self) -> None:
        """Let the coordinator handle what comes next, as a server does: it looks at the deadline first."""
        at, _, event = self._coming[0]
        counts = self.coordinator.is_running()
        began = self.clock.now()
        due = self.coordinator.deadline()
        is_time = due is not None and due <= at
        if is_time:
            assert due is not None
            self.now, event = max(self.now, due), events.TimePassed()
        else:
            self.now = at
        effects = self.coordinator.handle(event, self.now)
        if counts:
            self.decide_s += self.clock.now() - began
            self.handled += 1
        if not is_time:
            heappop(self._coming)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Lease):
                self._compute(effect.peer, effect.message)

    def _compute(self, peer: bytes, lease: Lease) -> None:
        """Let a worker answer a lease once it has computed what it has."""
        speed = 1.0 + SPREAD * (int.from_bytes(peer, "big") * GOLDEN % 1.0)
        takes_s = PIECE_S * speed * (lease.hi - lease.lo)
        self._free_at[peer] = done = max(self._free_at[peer], self.now + WAY_S) + takes_s
        result = Result(
            work=lease.work,
            step=lease.step,
            lo=lease.lo,
            hi=lease.hi,
            loss_sum=1.0,
            correct=0,
            count=lease.hi - lease.lo,
            compute_s=takes_s,
            number=lease.number,
        )
        self._send(done + WAY_S, events.ResultReceived(peer=peer, result=result))

    def _send(self, at: float, event: events.Event) -> None:
        self._sent += 1
        heappush(self._coming, (at, self._sent, event))


def measure(workers: Sequence[int], pieces: int, steps: int, clock: Clock) -> Iterator[CoordinatorRow]:
    """Yield a row for each number of workers, with so many micro-batches for each, as far as a job has so many."""
    first: float | None = None
    for count in workers:
        crowd = Crowd(count, min(count * pieces, MOST_PIECES), steps, clock)
        crowd.run()
        us = crowd.decide_s / crowd.handled * 1e6
        first = us if first is None else first
        yield CoordinatorRow(
            workers=count,
            micro_batches=crowd.pieces,
            steps=steps,
            events=crowd.handled,
            decide_s=crowd.decide_s,
            events_per_s=crowd.handled / crowd.decide_s,
            us_per_event=us,
            ms_per_step=crowd.decide_s / steps * 1e3,
            growth=us / first,
        )
