"""What a simulated run is to come to, as one process alone finds it; and what speaks against a run."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.data.sampler import Sampler
from common.data.source import with_validation
from common.runtime.clock import ManualClock
from lockstep.runs.single_process import SerialRun
from lockstep.simulation.small import data, job_named
from lockstep.verification.coverage import check_coverage
from ps.records.ledger import Line, StepDone, read_lines
from ps.records.recorder import MetricsRecorder, Setting
from ps.records.run_folder import LEDGER, RunFolder, RunResult
from ps.run.plan import plan_of
from ps.setup import AdmissionPolicy, open_run

#: Of an epoch, what has to be the same whoever computed it.
FIGURES = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "weights_sha256")


@dataclass(frozen=True)
class Expected:
    """The run of one process."""

    result: RunResult
    steps: dict[int, StepDone]


@cache
def expected(job: str, steps: int | None) -> Expected:
    """Return what a small job comes to."""
    opening = open_run("alone", job_named(job, steps), data(), AdmissionPolicy())
    with tempfile.TemporaryDirectory(prefix="lockstep-alone-") as name:
        folder = RunFolder(Path(name))
        setting = Setting(servers=0, transport="none", started=0.0)
        recorder = MetricsRecorder(opening.facts, setting, opening.layout, folder)
        recorder.begin(opening.shard.digest())
        result = SerialRun(opening, recorder, ManualClock(), lambda status: None).train()
        return Expected(result, _steps(_ledger_in(folder.path)))


def objections(job: str, steps: int | None, result: RunResult, folder: Path) -> Iterator[str]:
    """Yield what speaks against a run that has ended well, with these books."""
    truth, lines = expected(job, steps), _ledger_in(folder)
    # The first difference before the last: it tells more.
    for step, line in _steps(lines).items():
        there = truth.steps[step]
        if line.losses != there.losses:
            yield f"step {step} has other losses than one process finds"
            break
        if line.mark != there.mark:
            yield f"the weights after step {step} are not those of one process"
            break
    for epoch, there_too in zip(result.history, truth.result.history, strict=False):
        for name in FIGURES:
            if getattr(epoch, name) != getattr(there_too, name):
                yield f"epoch {epoch.epoch}: {name} = {getattr(epoch, name)!r}: expected {getattr(there_too, name)!r}"
    if len(result.history) != len(truth.result.history):
        yield f"{len(result.history)} epochs are in the result: expected {len(truth.result.history)}"
    if result.weights_sha256 != truth.result.weights_sha256:
        yield f"the weights are {result.weights_sha256[:12]}…: expected {truth.result.weights_sha256[:12]}…"
    yield from _unproven(job, steps, lines)


def _unproven(job: str, steps: int | None, lines: list[Line]) -> Iterator[str]:
    """Yield what the ledger does not prove: each sample once an epoch, each step once."""
    the_job = job_named(job, steps)
    parts = with_validation(data(), the_job.validation_split, the_job.seed)
    samples = len(parts.train)
    plan = plan_of(the_job, samples, len(parts.test), len(parts.validation or ()))
    proof = check_coverage(lines, plan, Sampler(samples, the_job.global_batch, the_job.micro_batches, the_job.seed))
    yield from proof.faults()
    done, total = sorted(_steps(lines)), expected(job, steps).result.steps
    if done != list(range(total)):
        yield f"the ledger tells of the steps {done}: expected all {total}"
    short = [epoch.epoch for epoch in proof.epochs[: total // plan.steps_per_epoch] if not epoch.is_whole()]
    if short:
        yield f"not all samples were used in the epochs {short}"


def _ledger_in(folder: Path) -> list[Line]:
    return read_lines((folder / LEDGER).read_bytes(), LEDGER)


def _steps(lines: list[Line]) -> dict[int, StepDone]:
    return {line.step: line for line in lines if isinstance(line, StepDone)}
