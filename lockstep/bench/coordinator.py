"""Bench the decisions of the real coordinator, by the number of workers, which are simulated in virtual time.

A worker computes its leases in turn, some workers are slower than others, and some results arrive after their step has
ended, as happens with real workers.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import product
from typing import Annotated, ClassVar

import msgspec

from lockstep.bench import bench as options
from lockstep.bench.bench import Bench, Panel, Series, TableColumn
from lockstep.bench.timed_run import BenchSession
from lockstep.cli.options.types import whole_number
from lockstep.common.job.job import Job
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import CORES_LIMIT, Lease, Ready, Result
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock
from lockstep.launch.client import worker_join
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Send, UpdateWeights
from lockstep.ps.coordinator.parts.assembly import all_parts
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import plan_of

#: Virtual seconds to compute a micro-batch and to send a message, and how much longer the slowest worker takes.
MICRO_BATCH_S, LATENCY_S, SPREAD = 0.01, 0.0001, 0.2

#: The fractional parts of its multiples are spread evenly; they give the speeds of the workers.
GOLDEN = 0.6180339887498949

#: Most micro-batches of a job.
MAX_MICRO_BATCHES = 4096

DIGEST = "0" * 64


class CoordinatorRow(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of decisions of the real coordinator with simulated workers, in virtual time."""

    workers: Annotated[int, TableColumn("workers", 7)]
    micro_batches: Annotated[int, TableColumn("micro-batches", 14)]
    #: Steps made, and events handled from the first step on.
    steps: int
    events: Annotated[int, TableColumn("events", 9, ",")]
    #: Seconds that the coordinator took for them in the middle turn, including the look at its deadline before each.
    decide_s: float
    events_per_s: Annotated[float, TableColumn("events/s", 10, ",.0f")]
    us_per_event: Annotated[float, TableColumn("us/event", 9, ".1f")]
    #: Of the fastest and of the slowest turn.
    us_spread: tuple[float, float] = (0.0, 0.0)
    #: Microseconds per event over those with the fewest workers; 1 if the costs do not depend on their number.
    growth: Annotated[float, TableColumn("growth", 7, ".2f", "x")]
    ms_per_step: Annotated[float, TableColumn("ms/step", 8, ".2f")]


@dataclass
class SimulatedWorkers:
    """A run with simulated workers, all of which join at the beginning."""

    workers: int
    micro_batches: int
    steps: int
    #: Measures the decisions; independent of virtual time.
    clock: Clock
    coordinator: Coordinator = field(init=False)
    #: Virtual seconds.
    now: float = 0.0
    #: Events handled since the first step start, and the real seconds that they took.
    handled: int = 0
    decide_s: float = 0.0
    #: Events on their way to the coordinator: (time of arrival, number, event).
    _pending: list[tuple[float, int, events.Event]] = field(default_factory=list)
    _sent: int = 0
    #: When each worker will have computed all its leases.
    _free_at: dict[bytes, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        job = Job(model="linear", global_batch=self.micro_batches, micro_batches=self.micro_batches, steps=self.steps)
        info = RunInfo(
            run="run",
            job=job,
            plan=plan_of(job, self.micro_batches * self.steps, 1),
            training_samples=self.micro_batches * self.steps,
            layout=DIGEST,
            dataset=DIGEST,
            source="",
            fingerprint=fingerprint(),
            options=RunOptions(min_workers=self.workers),
        )
        self.coordinator = Coordinator(info, all_parts())
        for number in range(self.workers):
            peer = number.to_bytes(4, "big")
            join = worker_join(str(number), "run", number, "run", range(min(self.workers, CORES_LIMIT)))
            self._send(0.0, events.Received(peer=peer, message=join))
            self._send(1.0, events.Received(peer=peer, message=Ready(rank=number, part=info.part)))

    def run(self) -> None:
        """Run to the end."""
        while not self.coordinator.is_over():
            self.turn()

    def turn(self) -> None:
        """Let the coordinator handle the next event, after a look at its deadline, as a server does."""
        at, _, arriving = self._pending[0]
        event: events.Event = arriving
        counts = self.coordinator.is_running()
        start = self.clock.now()
        due = self.coordinator.deadline()
        if due is not None and due <= at:
            self.now, event = max(self.now, due), events.TimePassed()
        else:
            self.now = at
        effects = self.coordinator.handle(event, self.now)
        for update in [effect for effect in effects if isinstance(effect, UpdateWeights)]:
            effects += self.coordinator.handle(events.StepUpdated(step=update.step), self.now)
        if counts:
            self.decide_s += self.clock.now() - start
            self.handled += 1
        if event is arriving:
            heappop(self._pending)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Lease):
                self._compute(effect.peer, effect.message)

    def _compute(self, peer: bytes, lease: Lease) -> None:
        """Let a worker answer a lease after those that it already has."""
        speed = 1.0 + SPREAD * (int.from_bytes(peer, "big") * GOLDEN % 1.0)
        takes_s = MICRO_BATCH_S * speed * (lease.hi - lease.lo)
        self._free_at[peer] = done = max(self._free_at[peer], self.now + LATENCY_S) + takes_s
        result = Result(
            work=lease.work,
            step=lease.step,
            lo=lease.lo,
            hi=lease.hi,
            loss_sum=1.0,
            count=lease.hi - lease.lo,
            compute_s=takes_s,
            number=lease.number,
        )
        self._send(done + LATENCY_S, events.Received(peer=peer, message=result))

    def _send(self, at: float, event: events.Event) -> None:
        self._sent += 1
        heappush(self._pending, (at, self._sent, event))


@dataclass(kw_only=True)
class CoordinatorBench(Bench[CoordinatorRow]):
    """Time the decisions of the coordinator in runs of simulated workers, in virtual time.

    The coordinator is the real one; no gradients and no messages travel. The time is what the server's thread needs to
    assign the work. It must stay small compared to the exchange, and an event must cost the same for any
    number of workers.

    \b
      lockstep bench coordinator --workers 1,1000
    """

    name: ClassVar = "coordinator"
    summary: ClassVar = "The coordinator alone: events per second."
    row: ClassVar = CoordinatorRow

    workers: tuple[int, ...] = options.option(
        "--workers", options.Several(whole_number(1, 4096)), "numbers of simulated workers", "1,10,100,1000"
    )
    micro_batches_per_worker: int = options.option(
        "--micro-batches-per-worker", whole_number(1, MAX_MICRO_BATCHES), "micro-batches per worker", "4"
    )
    steps: int = options.option("--steps", whole_number(1), "steps of each run", "20")
    rounds: int = options.rounds("1")

    def measure(self, session: BenchSession) -> Iterator[CoordinatorRow]:
        turns = dict[int, list[SimulatedWorkers]]()
        for _, count in product(range(self.rounds), self.workers):
            micro_batches = min(count * self.micro_batches_per_worker, MAX_MICRO_BATCHES)
            run = SimulatedWorkers(count, micro_batches, self.steps, session.clock)
            run.run()
            turns.setdefault(count, []).append(run)
        first: float | None = None
        for count, runs in turns.items():
            runs.sort(key=lambda run: run.decide_s / run.handled)
            run, costs = runs[len(runs) // 2], [each.decide_s / each.handled * 1e6 for each in runs]
            us = costs[len(costs) // 2]
            first = us if first is None else first
            yield CoordinatorRow(
                workers=count,
                micro_batches=run.micro_batches,
                steps=self.steps,
                events=run.handled,
                decide_s=run.decide_s,
                events_per_s=run.handled / run.decide_s,
                us_per_event=us,
                us_spread=(costs[0], costs[-1]),
                growth=us / first,
                ms_per_step=run.decide_s / self.steps * 1e3,
            )

    def panels(self, rows: Sequence[CoordinatorRow]) -> list[list[Panel]]:
        """Return the costs of an event and of a step by the number of workers."""
        counts, us = [row.workers for row in rows], [row.us_per_event for row in rows]
        events = Series("", "compute", us, "o-", counts)
        steps = Series("", "exchange", [row.ms_per_step for row in rows], "o-", counts)
        left = Panel("the coordinator: microseconds per event", "µs", [events], end=1.15 * max(us))
        return [[left, Panel("milliseconds of all decisions per step", "ms", [steps], is_log=True)]]
