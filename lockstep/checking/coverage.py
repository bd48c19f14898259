"""The report on a ledger: that each epoch used every sample once, and which leases were computed again."""

from collections import Counter
from functools import partial
from itertools import groupby

from lockstep.checking.recorded_run import RecordedRun
from lockstep.checking.verify import CoverageReport, EpochCoverage, check_coverage
from lockstep.common.data.sampler import Sampler
from lockstep.common.errors import DifferenceError
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.ps.records.ledger import RunBegun, UnusedWork, WorkerConvicted, WorkerIn
from lockstep.ps.run.plan import plan_of

#: Leases of one epoch that are listed for one reason. More are only counted: a busy machine has dozens of copies.
MOST_ENTERED = 3


def coverage_of(recorded: RecordedRun) -> CoverageReport:
    job, data = recorded.job, recorded.description()
    sampler = Sampler(data.training_samples, job.global_batch, job.micro_batches, job.seed)
    return check_coverage(recorded.lines, plan_of(job, data.training_samples, data.test_samples), sampler)


def demand_coverage(report: CoverageReport) -> None:
    """Raise `DifferenceError` with the first fault of a report that has one."""
    faults = report.faults()
    if faults:
        more = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise DifferenceError(f"the ledger does not prove the run: {faults[0]}{more}")


def coverage_lines(recorded: RecordedRun, report: CoverageReport, *, lists_all: bool = False) -> list[str]:
    """Return a report for a person, with each lease that was computed again or with the number of them.

    Epochs in a row of which the same is true have one line.
    """
    workers = recorded.workers()
    lines = [_resumed_line(begun) for begun in report.resumed]
    lines += [_convicted_line(convicted) for convicted in report.convicted]
    again_lines = partial(_again_lines, workers=workers, lists_all=lists_all)
    for (work, again), alike in groupby(report.epochs, lambda epoch: (_work_of(epoch), again_lines(epoch))):
        first, *rest = (epoch.epoch for epoch in alike)
        lines += [f"epochs {first} to {rest[-1]}, each: {work}" if rest else f"epoch {first}: {work}", *again]
    return lines


def _resumed_line(begun: RunBegun) -> str:
    # Steps that were lost with the ledger of another server are not counted here.
    lost = f": {begun.lost_steps} steps were recomputed" if begun.lost_steps else ""
    return f"resumed after step {begun.step}{lost}"


def _again_lines(epoch: EpochCoverage, workers: dict[int, dict[int, WorkerIn]], *, lists_all: bool) -> list[str]:
    counts = Counter(again.why for again in epoch.again)
    counted = {why: n for why, n in counts.items() if n > MOST_ENTERED and not lists_all}
    lines = [f"  {n} leases, listed by `lockstep ledger --all`: {why}" for why, n in counted.items()]
    shown = (again for again in epoch.again if again.why not in counted)
    lines += [f"  {_again_line(again, workers.get(again.step, {}))}" for again in shown]
    if epoch.omitted:
        lines.append(f"  and {epoch.omitted} more that the ledger only counts")
    return lines


def _convicted_line(convicted: WorkerConvicted) -> str:
    where = f"step {convicted.back_to}" if convicted.back_to else "its beginning"
    return f"{convicted.why()}: it was evicted, and the run went back to {where}"


def _work_of(epoch: EpochCoverage) -> str:
    work = f"{epoch.steps:,} steps, {epoch.micro_batches:,} micro-batches"
    if epoch.faults:
        return f"{work}: NOT PROVEN: {epoch.faults[0]}"
    if epoch.is_whole():
        return f"{work}: each of {epoch.samples:,} samples was used once"
    return f"{work}: {epoch.used:,} of {epoch.samples:,} samples were used, none twice"


def _again_line(again: UnusedWork, workers: dict[int, WorkerIn]) -> str:
    what = "micro-batches" if again.work in OF_A_STEP else "evaluation chunks"
    who = workers[again.rank].named() if again.rank in workers else f"worker {again.rank}"
    return f"step {again.step}, {what} {again.node()}, {who}: {again.why}"
