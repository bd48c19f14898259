"""Simulate a scenario, and compare the run with that of one process: its weights, and all that is recorded of it."""

import math
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import msgspec

from lockstep.checking.verify import check_coverage
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.sampler import Sampler
from lockstep.common.data.source import with_validation
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import EpochRecord
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.transport.shared_memory.folder import shared_root
from lockstep.ps.records.ledger import Line, StepDone
from lockstep.ps.records.metrics import RunMetrics, StepRecord, read_metrics
from lockstep.ps.records.receipt import Receipt
from lockstep.ps.records.recorder import NO_TRANSPORT, MetricsRecorder, Setting
from lockstep.ps.records.run_folder import RunFolder, RunResult, read_ledger, read_receipt, read_result
from lockstep.ps.run.plan import plan_of
from lockstep.ps.setup import open_run
from lockstep.runs.single_process import SerialRun
from tests.simulation.simulator.jobs import data, job_named
from tests.simulation.simulator.processes import RUN, Parts
from tests.simulation.simulator.scenario import Scenario
from tests.simulation.simulator.simulation import Simulation
from tests.simulation.simulator.world import World

#: The fields of a result, a step or an epoch that depend on the processes that computed it.
FREE = {
    *("workers", "teams", "servers", "transport", "obstacle", "crowding", "moved", "split", "audited", "unaudited"),
    *("images_per_s", "compute_s", "sums_bytes", "weights_bytes"),
}

#: The fields that are durations, in seconds.
DURATIONS = ("round_s", "mean_s", "slowest_s", "update_s", "wall_s", "train_s")

#: A line of the metrics.
Row = StepRecord | EpochRecord

#: Characters of a value that are shown of a difference.
LONGEST = 80


class RunRecords(msgspec.Struct, frozen=True):
    """The records of a run that has succeeded."""

    result: RunResult
    ledger: list[Line]
    metrics: RunMetrics
    receipt: Receipt

    @classmethod
    def of(cls, folder: Path) -> Self:
        return cls(read_result(folder), read_ledger(folder), read_metrics(folder), read_receipt(folder))

    @property
    def steps(self) -> dict[int, StepDone]:
        return {line.step: line for line in self.ledger if isinstance(line, StepDone)}


@cache
def reference_of(job: str, steps: int | None) -> RunRecords:
    """Return the run of a small job, by its name, in one process."""
    named = job_named(job, steps)
    return reference_run(named, data(named.data))


def reference_run(job: Job, data: TrainTest) -> RunRecords:
    """Return the run of a job in one process."""
    setup = open_run(RUN, job, data, RunOptions())
    with tempfile.TemporaryDirectory(prefix="lockstep-reference-") as name:
        folder = RunFolder(Path(name))
        setting = Setting(transport=NO_TRANSPORT, started=0.0)
        recorder = MetricsRecorder(setup.info, setting, setup.layout, folder)
        recorder.begin(setup.shard.digest())
        SerialRun(setup, recorder, ManualClock(), lambda status: None).train()
        recorder.close()
        return RunRecords.of(folder.path)


def violations(job: Job, data: TrainTest, folder: Path, reference: RunRecords) -> Iterator[str]:
    """Yield how a successful run differs from the run of one process, or what its records do not prove."""
    found, expected_steps = RunRecords.of(folder), reference.steps
    # The first difference is the most informative one.
    for step, line in found.steps.items():
        there = expected_steps[step]
        if line.losses != there.losses:
            yield f"step {step} has other losses than in one process"
            break
        if line.checksum != there.checksum:
            yield f"the weights after step {step} are not those of one process"
            break
    history, expected = found.result.history, reference.result.history
    if len(history) != len(expected):
        yield f"{len(history)} epochs are in the result: expected {len(expected)}"
    yield from _row_differences("epoch", history, expected)
    yield from _differences("the result", found.result, reference.result)
    yield from _ledger_violations(job, data, found, reference.result.steps)
    yield from _metrics_violations(found.metrics, reference.metrics)
    yield from _differences("the receipt", found.receipt, reference.receipt)


def _differences(what: str, found: msgspec.Struct, expected: msgspec.Struct) -> Iterator[str]:
    """Yield the fields that differ although they must not depend on the processes, and impossible durations."""
    for name in found.__struct_fields__:
        value, there = getattr(found, name), getattr(expected, name)
        if name in DURATIONS:
            if not (math.isfinite(value) and value >= 0.0):
                yield f"{what}: {name} = {value!r}: expected seconds"
        elif name not in FREE and name != "history" and value != there:
            yield f"{what}: {name} = {_short(value)}: expected {_short(there)}"


def _row_differences(what: str, found: Sequence[Row], expected: Sequence[Row]) -> Iterator[str]:
    for row, there in zip(found, expected, strict=False):
        yield from _differences(f"{what} {row.step if isinstance(row, StepRecord) else row.epoch}", row, there)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _metrics_violations(found: RunMetrics, expected: RunMetrics) -> Iterator[str]:
    """Yield the steps and epochs whose figures are missing, recorded twice, or different."""
    for name, numbers, wanted in (
        ("steps", [line.step for line in found.steps], [line.step for line in expected.steps]),
        ("epochs", [line.epoch for line in found.epochs], [line.epoch for line in expected.epochs]),
    ):
        if numbers != wanted:
            yield f"the metrics have the {name} {numbers}: expected {wanted}"
            return
    yield from _row_differences("the metrics of step", found.steps, expected.steps)
    yield from _row_differences("the metrics of epoch", found.epochs, expected.epochs)


def _ledger_violations(job: Job, data: TrainTest, run: RunRecords, total: int) -> Iterator[str]:
    """Yield what the ledger does not prove: each sample once per epoch, and each step once."""
    parts = with_validation(data, job.validation_split, job.seed)
    samples = len(parts.train)
    plan = plan_of(job, samples, len(parts.test), len(parts.validation or ()))
    report = check_coverage(run.ledger, plan, Sampler(samples, job.global_batch, job.micro_batches, job.seed))
    yield from report.faults()
    done = sorted(run.steps)
    if done != list(range(total)):
        yield f"the ledger has the steps {done}: expected all {total}"
    short = [epoch.epoch for epoch in report.epochs[: total // plan.steps_per_epoch] if not epoch.is_whole()]
    if short:
        yield f"not all samples were used in the epochs {short}"


class SimulationOutcome(msgspec.Struct, frozen=True):
    """The outcome of one simulated run."""

    #: Violations of the promise, the most informative first.
    violations: tuple[str, ...]
    #: The world after the run, with the number, digest and trace of its events.
    world: World
    #: Kind of fault -> how often it occurred.
    faults: Counter[str]


def simulate(scenario: Scenario, parts: Parts | None = None, *, is_traced: bool = False) -> SimulationOutcome:
    """Run a scenario in a folder of its own, in memory if possible, and check the outcome."""
    with tempfile.TemporaryDirectory(prefix="lockstep-simulation-", dir=shared_root()) as folder:
        simulation = Simulation.of(scenario, Path(folder), parts or Parts(), World(is_traced=is_traced))
        try:
            found = _violations_of(simulation)
        finally:
            simulation.close()
        if not found and (left := simulation.leftovers()):
            found = (f"the run has left {', '.join(left)}",)
        return SimulationOutcome(found, simulation.world, simulation.faults.injected)


def _violations_of(simulation: Simulation) -> tuple[str, ...]:
    run, scenario = simulation.run, simulation.scenario
    try:
        failure = simulation.run_to_end() or simulation.settle()
    except Exception:  # noqa: BLE001  # whatever a state machine raises is a violation
        return (f"raised {traceback.format_exc().rstrip()}",)
    if failure:
        return (failure,)
    reference = reference_of(scenario.job, scenario.steps)
    # Two servers that both believed to lead the run to its end have the same weights.
    return tuple(
        one for folder in simulation.watch.finished for one in violations(run.job, run.data, folder, reference)
    )
