"""Simulate a scenario, and compare the run with the run of one process."""

import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.data.sampler import Sampler
from common.data.source import with_validation
from common.runtime.clock import ManualClock
from common.transport.shared_memory.folder import shared_root
from lockstep.runs.single_process import SerialRun
from lockstep.simulation.jobs import data, job_named
from lockstep.simulation.processes import Parts
from lockstep.simulation.scenario import Scenario
from lockstep.simulation.simulation import Simulation
from lockstep.verification.coverage import check_coverage
from ps.records.ledger import Line, StepDone, read_lines
from ps.records.recorder import MetricsRecorder, Setting
from ps.records.run_folder import LEDGER, RunFolder, RunResult
from ps.run.plan import plan_of
from ps.setup import AdmissionPolicy, open_run

#: The figures of an epoch that must not depend on which worker computed them.
FIGURES = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "weights_sha256")


@dataclass(frozen=True)
class ReferenceRun:
    """The run of one process."""

    result: RunResult
    steps: dict[int, StepDone]


@cache
def reference_run(job: str, steps: int | None) -> ReferenceRun:
    """Return the run of a small job in one process."""
    setup = open_run("reference", job_named(job, steps), data(), AdmissionPolicy())
    with tempfile.TemporaryDirectory(prefix="lockstep-reference-") as name:
        folder = RunFolder(Path(name))
        setting = Setting(servers=0, transport="none", started=0.0)
        recorder = MetricsRecorder(setup.info, setting, setup.layout, folder)
        recorder.begin(setup.shard.digest())
        result = SerialRun(setup, recorder, ManualClock(), lambda status: None).train()
        return ReferenceRun(result, _steps(_ledger_in(folder.path)))


def violations(job: str, steps: int | None, result: RunResult, folder: Path) -> Iterator[str]:
    """Yield how a successful run differs from the run of one process, or what its ledger does not prove."""
    reference, lines = reference_run(job, steps), _ledger_in(folder)
    # The first difference is the most informative one.
    for step, line in _steps(lines).items():
        there = reference.steps[step]
        if line.losses != there.losses:
            yield f"step {step} has other losses than in one process"
            break
        if line.checksum != there.checksum:
            yield f"the weights after step {step} are not those of one process"
            break
    for epoch, there_too in zip(result.history, reference.result.history, strict=False):
        for name in FIGURES:
            if getattr(epoch, name) != getattr(there_too, name):
                yield f"epoch {epoch.epoch}: {name} = {getattr(epoch, name)!r}: expected {getattr(there_too, name)!r}"
    if len(result.history) != len(reference.result.history):
        yield f"{len(result.history)} epochs are in the result: expected {len(reference.result.history)}"
    if result.weights_sha256 != reference.result.weights_sha256:
        yield f"the weights are {result.weights_sha256[:12]}…: expected {reference.result.weights_sha256[:12]}…"
    yield from _ledger_violations(job, steps, lines)


def _ledger_violations(job: str, steps: int | None, lines: list[Line]) -> Iterator[str]:
    """Yield what the ledger does not prove: each sample once per epoch, and each step once."""
    the_job = job_named(job, steps)
    parts = with_validation(data(), the_job.validation_split, the_job.seed)
    samples = len(parts.train)
    plan = plan_of(the_job, samples, len(parts.test), len(parts.validation or ()))
    report = check_coverage(lines, plan, Sampler(samples, the_job.global_batch, the_job.micro_batches, the_job.seed))
    yield from report.faults()
    done, total = sorted(_steps(lines)), reference_run(job, steps).result.steps
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
class Outcome:
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


def simulate(scenario: Scenario, parts: Parts | None = None, *, is_traced: bool = False) -> Outcome:
    """Run a scenario in a folder of its own, in memory if possible, and check the outcome."""
    with tempfile.TemporaryDirectory(prefix="lockstep-simulation-", dir=shared_root()) as folder:
        simulation = Simulation(scenario, Path(folder), parts or Parts())
        world = simulation.world
        world.trace = [] if is_traced else None
        try:
            found = _violations_of(simulation)
        finally:
            simulation.close()
        return Outcome(
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
        failure = simulation.run_to_end()
    except Exception:  # noqa: BLE001  # whatever a state machine raises is a violation
        return (f"raised {traceback.format_exc().rstrip()}",)
    if failure:
        return (failure,)
    assert simulation.result is not None
    return tuple(violations(scenario.job, scenario.steps, simulation.result, simulation.run.folder))
