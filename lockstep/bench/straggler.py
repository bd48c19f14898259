"""Bench training with one slow worker, in turns with the fast workers alone and with all of them fast."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.bench.reports.rows import StragglerRow
from lockstep.bench.slowdown import PATTERNS, Begun, Slowdown
from lockstep.bench.timed_run import WARM_UP, DigestCheck, counted, finished_run, mean_step_s, write_data
from lockstep.common.errors import RunError
from lockstep.common.job.job import Job
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.environment import cores
from lockstep.ps.records.ledger import Line, StepDone, UnusedWork, WorkerIn
from lockstep.ps.records.metrics import StepRecord, read_metrics
from lockstep.ps.records.run_folder import RunResult, read_ledger
from lockstep.runs.job_file import resolve
from lockstep.runs.launch_config import Launch

#: The fast workers alone, and all workers fast: what the slow ones are compared with.
ALONE, ALL = "alone", "all"


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """What to measure: one job, in every case."""

    model: str
    batch: int
    micro_batches: int
    #: 2 or more, of whom the last is slow.
    workers: int
    #: Of `PATTERNS`: what is done to the last worker.
    cases: tuple[str, ...]
    #: Steps of each case, and the turns in which they are measured.
    steps: int
    rounds: int

    def job(self, folder: Path) -> Job:
        """Return the job; write its data into the folder."""
        values = {"model": self.model, "data": str(write_data(folder)), "lr": 0.01, "momentum": 0.9}
        shape = {"global_batch": self.batch, "micro_batches": self.micro_batches}
        job, _ = resolve({**values, **shape, "steps": WARM_UP + self.turn_steps()}, {})
        return job

    def turn_steps(self) -> int:
        """Return the steps of one turn."""
        return -(-self.steps // self.rounds)

    def all_cases(self) -> tuple[str, ...]:
        """Return the cases in the order of a turn, those that the others are compared with first."""
        return (ALONE, ALL, *self.cases)

    def workers_in(self, case: str) -> int:
        """Return how many workers take part in a case."""
        return self.workers - 1 if case == ALONE else self.workers

    def ideal(self, case: str) -> float:
        """Return the ideal images/s over those of the fast workers alone: the speeds of all workers add up."""
        return 1.0 + speed_in(case) / (self.workers - 1)


def speed_in(case: str) -> float:
    """Return the last worker's share of its full speed."""
    return {ALONE: 0.0, ALL: 1.0}[case] if case not in PATTERNS else PATTERNS[case].speed


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What was measured of one run, from the step on in which its last worker was slowed down."""

    #: Seconds of each step.
    seconds: list[float]
    #: Micro-batches that were used: of the last worker, and of all others together; and those that were not.
    by_last: int
    by_others: int
    unused: int


def turn_of(lines: Sequence[Line], steps: Sequence[StepRecord], begun: Begun | None) -> Turn:
    """Return what a run's ledger and metrics have of the steps from that one on in which its last worker was slowed."""
    first = len(steps) if begun is None else begun.step
    seconds = {step.step: step.round_s for step, counts in counted(steps) if counts and step.step >= first}
    if begun is None or not seconds:
        raise RunError(
            f"the run of {len(steps)} steps was over before its last worker was slowed down: expected more (--steps)"
        )
    # One that was evicted and joined again has several ranks.
    ranks = {line.rank for line in lines if isinstance(line, WorkerIn) and line.pid == begun.pid}
    shares = [share for line in lines if isinstance(line, StepDone) and line.step in seconds for share in line.shares]
    unused = [line for line in lines if isinstance(line, UnusedWork) and line.work == "train" and line.step in seconds]
    return Turn(
        seconds=list(seconds.values()),
        by_last=sum(share.hi - share.lo for share in shares if share.rank in ranks),
        by_others=sum(share.hi - share.lo for share in shares if share.rank not in ranks),
        unused=sum(line.hi - line.lo for line in unused),
    )


@dataclass
class StragglerBench:
    """A running bench, with a folder of its own."""

    straggler: Straggler
    folder: Path
    say: Callable[[str], None]
    clock: Clock
    digests: DigestCheck = field(default_factory=DigestCheck)

    def rows(self) -> Iterator[StragglerRow]:
        """Measure, and yield each row as soon as it is known, in the last turn."""
        straggler = self.straggler
        job, turns = straggler.job(self.folder), dict[str, list[Turn]]()
        for number in range(straggler.rounds):
            for case in straggler.all_cases():
                result, turn = self._turn(job, case)
                turns.setdefault(case, []).append(turn)
                if number == straggler.rounds - 1 and case != ALONE:
                    # Its ratio to all fast ones is known only now.
                    yield from [self._row(job, ALONE, result, turns)] if case == ALL else []
                    yield self._row(job, case, result, turns)

    def _turn(self, job: Job, case: str) -> tuple[RunResult, Turn]:
        launch = Launch(workers=self.straggler.workers_in(case))
        # Without a pattern the run is watched in the same way, so that the runs differ in nothing else.
        slowdown = Slowdown(PATTERNS.get(case), WARM_UP, self.clock)
        with finished_run(job, launch, self.folder, self.say, slowdown) as (result, run_dir):
            self.digests.check(job, result)
            return result, turn_of(read_ledger(run_dir), read_metrics(run_dir).steps, slowdown.begun)

    def _row(self, job: Job, case: str, result: RunResult, turns: dict[str, list[Turn]]) -> StragglerRow:
        seconds = {each: [turn.seconds for turn in turns[each]] for each in (case, ALONE, ALL)}
        step_s, steps = mean_step_s(seconds[case]), sum(map(len, seconds[case]))
        of_alone, of_all = (median_ratio(seconds[case], seconds[each]) for each in (ALONE, ALL))
        by_last, by_others = (sum(getattr(turn, name) for turn in turns[case]) for name in ("by_last", "by_others"))
        others = self.straggler.workers - 1
        return StragglerRow(
            model=job.model_name(),
            batch=job.global_batch,
            micro_batches=job.micro_batches,
            workers=self.straggler.workers_in(case),
            cores=cores(),
            case=case,
            speed=speed_in(case),
            steps=steps,
            ms_per_step=step_s * 1e3,
            images_per_s=job.global_batch / step_s,
            of_alone=of_alone,
            of_all=of_all,
            of_ideal=of_alone / self.straggler.ideal(case),
            duplicates=sum(turn.unused for turn in turns[case]) / (steps * job.micro_batches),
            micro_batches_of_fast=(by_others + (by_last if case == ALONE else 0)) / steps / others,
            micro_batches_of_slow=None if case == ALONE else by_last / steps,
            weights_sha256=result.weights_sha256,
        )


def median_ratio(ours: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """Return how much faster our mean step is than that of others: the median of the ratios of each turn."""
    return statistics.median(
        statistics.mean(theirs) / statistics.mean(mine) for mine, theirs in zip(ours, others, strict=True)
    )
