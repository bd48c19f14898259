"""Bench training with one slow worker, in turns with the fast workers alone and with all of them fast.

The worker is slowed down from outside, as a busy machine would: its process is stopped and continued by a duty cycle.
"""

import signal
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, zip_longest
from typing import Annotated, ClassVar

import click
import msgspec

from lockstep.bench import bench as options
from lockstep.bench.bench import Bench, Panel, Series, TableColumn
from lockstep.bench.peers import WARM_UP
from lockstep.bench.timed_run import (
    BenchSession,
    TimedRun,
    all_seconds,
    bench_job,
    mean_step_s,
    per_turn,
    spread_ms,
)
from lockstep.cli.options.types import whole_number
from lockstep.common.errors import RunError
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.environment import cores
from lockstep.launch.chaos import ProcessesOf
from lockstep.launch.supervision.restarts import Role
from lockstep.ps.records.ledger import Line, StepDone, UnusedWork, WorkerIn

#: The fast workers alone, and all workers fast: what the slow ones are compared with.
ALONE, ALL = "alone", "all"


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds in which a process runs and is stopped, again and again; None if it is stopped until the end."""

    runs_s: float
    still_s: float | None

    @property
    def speed(self) -> float:
        """The share of the time in which the process runs."""
        return 0.0 if self.still_s is None else self.runs_s / (self.runs_s + self.still_s)


#: Slowdown by a factor, in periods of a few milliseconds; a stall of 40 of every 60 ms; and stopped for good.
PATTERNS = {
    "2": Pattern(runs_s=0.001, still_s=0.001),
    "3": Pattern(runs_s=0.001, still_s=0.002),
    "10": Pattern(runs_s=0.001, still_s=0.009),
    "stall": Pattern(runs_s=0.020, still_s=0.040),
    "stopped": Pattern(runs_s=0.0, still_s=None),
}


def slow_down(
    pattern: Pattern, send: Callable[[signal.Signals], None], wait: Callable[[float | None], bool], clock: Clock
) -> None:
    """Stop and continue a process until `wait` says that this is over; in the end it runs, whatever happens.

    `wait` waits for so many seconds, or for ever if None; it returns early, and True, once the process is to run again.
    """
    due = clock.now()
    try:
        for number, lasts_s in cycle(((signal.SIGSTOP, pattern.still_s), (signal.SIGCONT, pattern.runs_s))):
            send(number)
            if lasts_s is not None:
                # From when the last signal was due, so that late wake-ups do not add up; from now if that is so long
                # ago that the process would not stand still at all, or not run.
                now = clock.now()
                due = (due if now - due < lasts_s else now) + lasts_s
            if wait(None if lasts_s is None else max(0.0, due - clock.now())):
                return
    finally:
        send(signal.SIGCONT)


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The step in which a slowdown began, and the process of the worker: its number in the system, and in its team."""

    step: int
    pid: int
    process: int


@dataclass
class Slowdown:
    """Slows the last worker of a run down, from a thread of its own, once the run has made some steps."""

    #: None leaves the worker alone, and only finds the step from which on it would be slow.
    pattern: Pattern | None
    after_steps: int
    clock: Clock
    begun: Begun | None = None
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def on_status(self, status: Status | None, processes: ProcessesOf) -> None:
        """Begin if it is time."""
        if self.begun is not None or status is None or status.step < self.after_steps:
            return
        *others, worker = processes(Role.WORKER)
        self.begun = Begun(step=status.step, pid=worker.pid, process=len(others))
        if self.pattern is not None:
            arguments = (self.pattern, worker.send, self._end.wait, self.clock)
            self._thread = threading.Thread(target=slow_down, args=arguments, name="duty cycle", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Let the worker run as it will."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()


class StragglerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model trained by some workers of which the last one is slow, or by the fast ones alone, or with all fast."""

    model: str
    batch: int
    micro_batches: int
    workers: int
    #: Cores of the machine, which workers, server and the bench share.
    cores: int
    case: Annotated[str, TableColumn("the last worker", -17, of=lambda row: case_name(row.case))]
    #: The slow worker's share of its full speed; 1 if all are fast, and 0 if the fast ones are alone.
    speed: float
    #: Steps measured in all turns; their mean in the middle turn, and in the fastest and the slowest turn.
    steps: int
    ms_per_step: Annotated[float, TableColumn("ms", 8, ".2f")]
    ms_spread: tuple[float, float] = (0.0, 0.0)
    images_per_s: Annotated[float, TableColumn("images/s", 9, ",.0f")]
    #: Images/s over those of the fast workers alone, of all workers when all are fast, and of the ideal, in which the
    #: speeds of all add up: the median of the ratios within each turn.
    of_alone: Annotated[float, TableColumn("/alone", 7, ".2f")]
    of_all: Annotated[float, TableColumn("/all", 5, ".2f")]
    of_ideal: Annotated[float, TableColumn("/ideal", 7, ".2f")]
    #: The least and the largest share of the ideal in a turn.
    of_ideal_spread: tuple[float, float] = (0.0, 0.0)
    #: Micro-batches that were leased and not used, over those of all steps.
    duplicates: Annotated[float, TableColumn("twice", 6, ".1%")]
    #: Micro-batches of a step that each fast worker computed, and the slow one; None without a slow one.
    micro_batches_of_fast: Annotated[float, TableColumn("fast", 5, ".1f")]
    micro_batches_of_slow: Annotated[float | None, TableColumn("slow", 5, ".1f")]
    weights_sha256: str


def case_name(case: str) -> str:
    """Return the treatment of the last worker in a case."""
    names = {ALONE: "is not there", ALL: "is as fast", "stall": "stalls", "stopped": "is stopped"}
    return names.get(case, f"is {case} times slower")


def speed_in(case: str) -> float:
    """Return the last worker's share of its full speed."""
    return {ALONE: 0.0, ALL: 1.0}[case] if case not in PATTERNS else PATTERNS[case].speed


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of one run, from the step on in which its last worker was slowed down."""

    #: Seconds of each step.
    seconds: list[float]
    #: Steps whose shares are known by process: a team does not report them for each step.
    known: int
    #: Micro-batches of these that were used: of the last worker, and of all others together.
    by_last: int
    by_others: int
    #: Micro-batches of all steps that were not used.
    unused: int


def turn_of(run: TimedRun, begun: Begun | None) -> Turn:
    """Return what a run has recorded of the steps from that one on in which its last worker was slowed down."""
    first = len(run.steps) if begun is None else begun.step
    seconds = {step.step: step.round_s for step, counts in run.counted() if counts and step.step >= first}
    if begun is None or not seconds:
        raise RunError(
            f"the run of {len(run.steps)} steps was over before its last worker was slowed down: expected more "
            "(--steps)"
        )
    owners = [
        owners_of(line, begun, run.ledger) for line in run.ledger if isinstance(line, StepDone) and line.step in seconds
    ]
    known = [each for each in owners if each is not None]
    unused = [
        line for line in run.ledger if isinstance(line, UnusedWork) and line.work == "train" and line.step in seconds
    ]
    return Turn(
        seconds=list(seconds.values()),
        known=len(known),
        by_last=sum(by_last for by_last, _ in known),
        by_others=sum(by_others for _, by_others in known),
        unused=sum(line.hi - line.lo for line in unused),
    )


def owners_of(step: StepDone, begun: Begun, ledger: Sequence[Line]) -> tuple[int, int] | None:
    """Return the micro-batches of a step by the last worker and by the others, None if a team does not say."""
    # One that was evicted and joined again has several ranks.
    ranks = {line.rank for line in ledger if isinstance(line, WorkerIn) and line.pid == begun.pid}
    teams = {line.rank for line in ledger if isinstance(line, WorkerIn) and line.processes > 1}
    by_last = 0
    for share, process in zip_longest(step.shares, step.processes):
        if share.rank in teams and process is None:
            return None
        is_last = process == begun.process if share.rank in teams else share.rank in ranks
        by_last += (share.hi - share.lo) * is_last
    return by_last, sum(share.hi - share.lo for share in step.shares) - by_last


@dataclass(kw_only=True)
class StragglerBench(Bench[StragglerRow]):
    """Train with one slow worker, and compare the speed with the fast workers alone and with all workers fast.

    The last worker is slowed down from outside. Its process is paused again and again, so that it runs for 1 of every
    2, 3 or 10 ms, or for 20 of every 60 ms (a stall). Or it is stopped for good. Ideally, the speeds of all workers
    add up. "twice" is the share of micro-batches that were leased and not used. "fast" and "slow" are the micro-batches
    per step of each fast worker and of the slow one.

    Images/s count from the step in which the worker is slowed down, after 20 steps, in the median turn. Ratios are
    medians over the turns. The start, evaluations and the step after each evaluation are not measured.

    \b
      lockstep bench straggler
      lockstep bench straggler --model cnn --cases 3,stopped --to straggler.json
      lockstep bench straggler --workers 4 --micro-batches 32 --plot straggler.png
    """

    name: ClassVar = "straggler"
    summary: ClassVar = "One slow worker: images/s, compared with the others alone."
    row: ClassVar = StragglerRow

    models: tuple[str, ...] = options.models("--model", text="models", default="lenet")
    batch: int = options.option("--batch", whole_number(1), "batch size", "128")
    micro_batches: int = options.option("--micro-batches", whole_number(1, 4096), "micro-batches per step", "8")
    workers: int = options.option("--workers", whole_number(2, 1024), "worker processes, with the slow one", "2")
    cases: tuple[str, ...] = options.option(
        "--cases",
        options.Several(click.Choice(tuple(PATTERNS))),
        "how the last worker is slowed down",
        "2,3,10,stall,stopped",
    )
    steps: int = options.steps("steps to measure in each case", "300")
    rounds: int = options.rounds()

    def measure(self, session: BenchSession) -> Iterator[StragglerRow]:
        for model in self.models:
            if len(self.models) > 1:
                session.say(model)
            job = bench_job(
                model=model,
                data=session.data(),
                global_batch=self.batch,
                micro_batches=self.micro_batches,
                steps=WARM_UP + per_turn(self.steps, self.rounds),
            )
            yield from self._measure(session, job)

    def _measure(self, session: BenchSession, job: Job) -> Iterator[StragglerRow]:
        turns = dict[str, list[Turn]]()
        for number in range(self.rounds):
            for case in self.all_cases():
                # Without a pattern the run is watched in the same way, so that the runs differ in nothing else.
                slowdown = Slowdown(PATTERNS.get(case), WARM_UP, session.clock)
                run = session.run(job, RunOptions(workers=self.workers_in(case)), slowdown)
                turns.setdefault(case, []).append(turn_of(run, slowdown.begun))
                if number == self.rounds - 1 and case != ALONE:
                    # The ratio of the fast ones alone to all fast ones is known only now.
                    for known in (ALONE, ALL) if case == ALL else (case,):
                        yield self._row(job, known, turns, run.result.weights_sha256)

    def all_cases(self) -> tuple[str, ...]:
        """Return the cases in the order of a turn, those that the others are compared with first."""
        return (ALONE, ALL, *self.cases)

    def workers_in(self, case: str) -> int:
        """Return how many workers take part in a case."""
        return self.workers - 1 if case == ALONE else self.workers

    def ideal(self, case: str) -> float:
        """Return the ideal images/s over those of the fast workers alone: the speeds of all workers add up."""
        return 1.0 + speed_in(case) / (self.workers - 1)

    def _row(self, job: Job, case: str, turns: dict[str, list[Turn]], weights_sha256: str) -> StragglerRow:
        mine, alone, all_fast = ([turn.seconds for turn in turns[each]] for each in (case, ALONE, ALL))
        step_s, steps, ratios = mean_step_s(mine), len(all_seconds(mine)), ratios_of(mine, alone)
        of_alone, ideal = statistics.median(ratios), self.ideal(case)
        names = ("known", "by_last", "by_others")
        known, by_last, by_others = (sum(getattr(turn, name) for turn in turns[case]) for name in names)
        known = max(1, known)
        return StragglerRow(
            model=job.model_name(),
            batch=job.global_batch,
            micro_batches=job.micro_batches,
            workers=self.workers_in(case),
            cores=cores(),
            case=case,
            speed=speed_in(case),
            steps=steps,
            ms_per_step=step_s * 1e3,
            ms_spread=spread_ms(mine),
            images_per_s=job.global_batch / step_s,
            of_alone=of_alone,
            of_all=statistics.median(ratios_of(mine, all_fast)),
            of_ideal=of_alone / ideal,
            of_ideal_spread=(min(ratios) / ideal, max(ratios) / ideal),
            duplicates=sum(turn.unused for turn in turns[case]) / (steps * job.micro_batches),
            micro_batches_of_fast=(by_others + (by_last if case == ALONE else 0)) / known / (self.workers - 1),
            micro_batches_of_slow=None if case == ALONE else by_last / known,
            weights_sha256=weights_sha256,
        )

    def panels(self, rows: Sequence[StragglerRow]) -> list[list[Panel]]:
        """Return two panels per model: images/s of each case next to the ideal, and micro-batches of each worker."""
        models = dict.fromkeys(row.model for row in rows)
        return [_panels([row for row in rows if row.model == model]) for model in models]


def _panels(rows: Sequence[StragglerRow]) -> list[Panel]:
    alone, cut = rows[0].images_per_s, rows[0].micro_batches
    ideals = [alone * row.of_alone / row.of_ideal for row in rows]
    lasts = [row.micro_batches_of_slow or 0.0 for row in rows]
    speeds = [
        Series("measured", "ours", [row.images_per_s for row in rows]),
        Series("ideal: the speeds of all workers", "ceiling", ideals, "|"),
        Series("the other workers alone", "torch", [alone], "-"),
    ]
    shares = [
        Series("micro-batches of the others", "update", [cut - last for last in lasts]),
        Series("micro-batches of the last worker", "exchange", lasts),
        Series("leased and not used", "waiting", [row.duplicates * cut for row in rows]),
    ]
    title = f"{rows[0].model}, {rows[0].batch} samples in {cut} micro-batches"
    names = [f"the last worker {case_name(row.case)}" for row in rows]
    texts = [f"{row.of_alone:.2f}x without it, {row.of_ideal:.0%} of the ideal" for row in rows]
    left = Panel(title, "images/s", speeds, names, texts, end=1.6, width=1.5)
    return [left, Panel("micro-batches of a step", "micro-batches", shares, [""] * len(rows))]


def ratios_of(ours: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> list[float]:
    """Return how much faster our mean step is than that of others in each turn."""
    return [statistics.mean(theirs) / statistics.mean(mine) for mine, theirs in zip(ours, others, strict=True)]
