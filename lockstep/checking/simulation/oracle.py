"""Simulate a scenario, and compare the run with that of one process: its weights, and all that is recorded of it."""

import math
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from lockstep.checking.simulation.jobs import data, job_named
from lockstep.checking.simulation.processes import RUN, Parts
from lockstep.checking.simulation.scenario import Scenario
from lockstep.checking.simulation.simulation import Simulation
from lockstep.checking.verification.coverage import check_coverage
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.sampler import Sampler
from lockstep.common.data.source import with_validation
from lockstep.common.job.job import Job
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.transport.shared_memory.folder import shared_root
from lockstep.ps.records.ledger import Line, StepDone, read_lines
from lockstep.ps.records.metrics import RunMetrics, read_metrics
from lockstep.ps.records.receipt import Receipt
from lockstep.ps.records.recorder import MetricsRecorder, Setting
from lockstep.ps.records.run_folder import LEDGER, RECEIPT, RunFolder, RunResult, read_result
from lockstep.ps.run.plan import plan_of
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.runs.single_process import SerialRun

#: The fields of a result, a step or an epoch that depend on who computed it.
FREE = {
    *("workers", "servers", "transport", "obstacle", "moved", "split", "audited", "unaudited"),
    *("images_per_s", "compute_s", "sums_bytes", "weights_bytes"),
}

#: The fields that are durations, in seconds.
DURATIONS = ("round_s", "mean_s", "slowest_s", "update_s", "wall_s", "train_s")

#: Characters of a value that are shown of a difference.
LONGEST = 80


@dataclass(frozen=True)
class ReferenceRun:
    """The run of one process."""

    result: RunResult
    steps: dict[int, StepDone]
    metrics: RunMetrics
    receipt: Receipt


@cache
def reference_of(job: str, steps: int | None) -> ReferenceRun:
    """Return the run of a small job, by its name, in one process."""
    return reference_run(job_named(job, steps), data())


def reference_run(job: Job, data: TrainTest) -> ReferenceRun:
    """Return the run of a job in one process."""
    setup = open_run(RUN, job, data, AdmissionPolicy())
    with tempfile.TemporaryDirectory(prefix="lockstep-reference-") as name:
        folder = RunFolder(Path(name))
        setting = Setting(servers=0, transport="none", started=0.0)
        recorder = MetricsRecorder(setup.info, setting, setup.layout, folder)
        recorder.begin(setup.shard.digest())
        result = SerialRun(setup, recorder, ManualClock(), lambda status: None).train()
        recorder.close()
        return ReferenceRun(
            result, _steps(_ledger_in(folder.path)), read_metrics(folder.path), _receipt_in(folder.path)
        )


def violations(job: Job, data: TrainTest, folder: Path, reference: ReferenceRun) -> Iterator[str]:
    """Yield how a successful run differs from the run of one process, or what its records do not prove."""
    result, lines = read_result(folder), _ledger_in(folder)
    # The first difference is the most informative one.
    for step, line in _steps(lines).items():
        there = reference.steps[step]
        if line.losses != there.losses:
            yield f"step {step} has other losses than in one process"
            break
        if line.checksum != there.checksum:
            yield f"the weights after step {step} are not those of one process"
            break
    if len(result.history) != len(reference.result.history):
        yield f"{len(result.history)} epochs are in the result: expected {len(reference.result.history)}"
    for epoch, there_too in zip(result.history, reference.result.history, strict=False):
        yield from _differences(f"epoch {epoch.epoch}", epoch, there_too)
    yield from _differences("the result", result, reference.result)
    yield from _ledger_violations(job, data, lines, reference.result.steps)
    yield from _metrics_violations(read_metrics(folder), reference.metrics)
    yield from _differences("the receipt", _receipt_in(folder), reference.receipt)


def _differences(what: str, found: msgspec.Struct, expected: msgspec.Struct) -> Iterator[str]:
    """Yield the fields that differ although they must not depend on who computed them, and impossible durations."""
    for name in found.__struct_fields__:
        value, there = getattr(found, name), getattr(expected, name)
        if name in DURATIONS:
            if not (math.isfinite(value) and value >= 0.0):
                yield f"{what}: {name} = {value!r}: expected seconds"
        elif name not in FREE and name != "history" and value != there:
            yield f"{what}: {name} = {_short(value)}: expected {_short(there)}"


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
    for step, there in zip(found.steps, expected.steps, strict=True):
        yield from _differences(f"the metrics of step {step.step}", step, there)
    for epoch, there_too in zip(found.epochs, expected.epochs, strict=True):
        yield from _differences(f"the metrics of epoch {epoch.epoch}", epoch, there_too)


def _receipt_in(folder: Path) -> Receipt:
    return msgspec.json.decode((folder / RECEIPT).read_bytes(), type=Receipt)


def _ledger_violations(job: Job, data: TrainTest, lines: list[Line], total: int) -> Iterator[str]:
    """Yield what the ledger does not prove: each sample once per epoch, and each step once."""
    parts = with_validation(data, job.validation_split, job.seed)
    samples = len(parts.train)
    plan = plan_of(job, samples, len(parts.test), len(parts.validation or ()))
    report = check_coverage(lines, plan, Sampler(samples, job.global_batch, job.micro_batches, job.seed))
    yield from report.faults()
    done = sorted(_steps(lines))
    if done != list(range(total)):
        yield f"the ledger has the steps {done}: expected all {total}"
    short = [epoch.epoch for epoch in report.epochs[: total // plan.steps_per_epoch] if not epoch.is_whole()]
    if short:
        yield f"not all samples were used in the epochs {short}"


def _ledger_in(folder: Path) -> list[Line]:
    return read_lines((folder / LEDGER).read_bytes(), LEDGER)


def _steps(lines: list[Line]) -> dict[int, StepDone]:
    return {line.step: line for line in lines if isinstance(line, StepDone)}


@dataclass(frozen=True, kw_only=True)
class SimulationOutcome:
    """The outcome of one simulated run."""

    scenario: Scenario
    #: Violations of the promise, the most informative first.
    violations: tuple[str, ...]
    #: Digest of all events: the same for the same seed.
    digest: str
    events: int
    #: Seconds of virtual time.
    seconds: float
    #: Kind of fault -> how often it occurred.
    faults: Counter[str]
    #: A line per event, if a trace was requested.
    trace: tuple[str, ...] = ()


def simulate(scenario: Scenario, parts: Parts | None = None, *, is_traced: bool = False) -> SimulationOutcome:
    """Run a scenario in a folder of its own, in memory if possible, and check the outcome."""
    with tempfile.TemporaryDirectory(prefix="lockstep-simulation-", dir=shared_root()) as folder:
        simulation = Simulation(scenario, Path(folder), parts or Parts())
        world = simulation.world
        world.trace = [] if is_traced else None
        try:
            found = _violations_of(simulation)
        finally:
            simulation.close()
        if not found and (left := simulation.leftovers()):
            found = (f"the run has left {', '.join(left)}",)
        return SimulationOutcome(
            scenario=scenario,
            violations=found,
            digest=world.digest(),
            events=world.events,
            seconds=world.now,
            faults=simulation.injected,
            trace=tuple(world.trace or ()),
        )


def _violations_of(simulation: Simulation) -> tuple[str, ...]:
    scenario = simulation.scenario
    try:
        failure = simulation.run_to_end() or simulation.settle()
    except Exception:  # noqa: BLE001  # whatever a state machine raises is a violation
        return (f"raised {traceback.format_exc().rstrip()}",)
    if failure:
        return (failure,)
    run = simulation.run
    return tuple(violations(run.job, run.data, run.folder, reference_of(scenario.job, scenario.steps)))
