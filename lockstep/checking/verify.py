"""Compute a recorded run again on this machine, step by step, and find the first difference.

The ledger shows that each epoch used every sample once, and lists repeated computations: by steps, and in a report for
a person."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.checking.recorded_run import RecordedRun
from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.sampler import Sampler
from lockstep.common.errors import DifferenceError
from lockstep.common.files.safetensors import read
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.ps.coordinator.failures import diverged_text
from lockstep.ps.records.ledger import (
    EpochDone,
    Line,
    OmittedEntries,
    RunBegun,
    StepDone,
    UnusedWork,
    WeightsAt,
    WorkerConvicted,
    WorkerIn,
)
from lockstep.ps.records.receipt import SubjectFile, read_chain
from lockstep.ps.records.run_folder import LEDGER, RECEIPT, RESULT, WEIGHTS, RunResult, subject_in
from lockstep.ps.run.plan import Plan, plan_of
from lockstep.ps.setup import RunSetup
from lockstep.runs.run_dir import finished
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.worker.gradient_sink import NotFiniteError

#: Most faults of one kind to report per step or epoch.
MOST_FAULTS = 3


@dataclass
class EpochCoverage:
    """The coverage of one epoch, as far as the ledger goes."""

    epoch: int
    #: Training samples, and how many of them the epoch used.
    samples: int
    used: int = 0
    steps: int = 0
    micro_batches: int = 0
    #: Violations; empty if every sample was used once, or not yet.
    faults: list[str] = field(default_factory=list)
    #: Leases whose results were not used.
    again: list[UnusedWork] = field(default_factory=list)
    #: Number of further such leases, which the ledger does not list.
    omitted: int = 0

    def is_whole(self) -> bool:
        """Return whether every sample was used."""
        return self.used == self.samples


class CoverageReport(msgspec.Struct, frozen=True):
    """The coverage of a whole run."""

    epochs: list[EpochCoverage]
    #: The points at which the run was resumed.
    resumed: list[RunBegun]
    #: Workers that computed wrongly, and were evicted: nothing of theirs is left that no audit has confirmed.
    convicted: list[WorkerConvicted]

    def faults(self) -> list[str]:
        return [fault for epoch in self.epochs for fault in epoch.faults]


def check_coverage(lines: list[Line], plan: Plan, sampler: Sampler) -> CoverageReport:
    """Return the coverage that a ledger shows, for a run with that plan and order of samples."""
    epochs: dict[int, EpochCoverage] = {}
    for line in lines:
        if isinstance(line, StepDone | UnusedWork | OmittedEntries):
            number = plan.epoch_of(line.step - (line.work not in OF_A_STEP if not isinstance(line, StepDone) else 0))
            epoch = epochs.setdefault(number, EpochCoverage(number, sampler.size))
            if isinstance(line, UnusedWork):
                epoch.again.append(line)
            elif isinstance(line, OmittedEntries):
                epoch.omitted += line.count
    done = [line for line in lines if isinstance(line, StepDone)]
    for number, epoch in epochs.items():
        _count(epoch, [line for line in done if plan.epoch_of(line.step) == number], sampler)
    _check_order(done, plan, epochs)
    begun = [line for line in lines if isinstance(line, RunBegun)]
    resumed = [line for place, line in enumerate(begun) if place or line.lost_steps]
    convicted = [line for line in lines if isinstance(line, WorkerConvicted)]
    return CoverageReport([epochs[number] for number in sorted(epochs)], resumed, convicted)


def _count(epoch: EpochCoverage, steps: list[StepDone], sampler: Sampler) -> None:
    """Count how often an epoch's steps used each sample."""
    uses: NDArray[np.int64] = np.zeros(sampler.size, np.int64)
    for line in steps:
        micro_batches = [m for share in line.shares for m in range(share.lo, share.hi)]
        epoch.faults += _miscounted(line, micro_batches, sampler.micro_batches)
        for m in micro_batches:
            if m < sampler.micro_batches:
                np.add.at(uses, sampler.indices(line.step, m), 1)
        epoch.micro_batches += len(micro_batches)
    epoch.steps, epoch.used = len(steps), int(np.count_nonzero(uses))
    for sample in np.flatnonzero(uses > 1)[:MOST_FAULTS]:
        epoch.faults.append(f"epoch {epoch.epoch}: sample {sample} was used {uses[sample]} times: expected once")


def _miscounted(line: StepDone, used: list[int], micro_batches: int) -> Iterator[str]:
    counts = np.bincount(used, minlength=micro_batches)
    for m in np.flatnonzero(counts[:micro_batches] != 1)[:MOST_FAULTS]:
        yield f"step {line.step}: micro-batch {m} was added {counts[m]} times: expected once"
    for m in np.flatnonzero(counts[micro_batches:])[:MOST_FAULTS]:
        yield f"step {line.step}: micro-batch {m + micro_batches} is not one of the {micro_batches}"


def _check_order(done: list[StepDone], plan: Plan, epochs: dict[int, EpochCoverage]) -> None:
    """Check that the ledger has all steps from the first on, each once and in order."""
    for expected, line in enumerate(done):
        if line.step != expected:
            number = plan.epoch_of(line.step)
            epochs[number].faults.append(f"step {line.step} is in the place of step {expected}")
            return


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first place where the run and its recomputation differ."""

    step: int
    #: None if all losses agree, but not the weights after the step.
    micro_batch: int | None = None
    text: str


@dataclass
class Verifier:
    """One recomputation, from the weights of the shard on."""

    run: RecordedRun
    setup: RunSetup
    #: Micro-batches and steps that were found equal.
    micro_batches: int = 0
    steps: int = 0
    _steps: dict[int, StepDone] = field(init=False)
    _workers: dict[int, dict[int, WorkerIn]] = field(init=False)
    #: Number of steps -> (source, SHA-256 of the weights after them).
    _digests: dict[int, list[tuple[str, str]]] = field(init=False)

    def __post_init__(self) -> None:
        self._steps, self._workers = self.run.steps(), self.run.workers()
        self._digests = {}
        for line in self.run.lines:
            if isinstance(line, RunBegun | WeightsAt | EpochDone):
                named = "the weights that it was resumed from" if isinstance(line, RunBegun) else "the checkpoint"
                named = f"epoch {line.epoch}" if isinstance(line, EpochDone) else named
                self._digests.setdefault(line.step, []).append((named, line.weights_sha256))

    def verify(self, until: int, watch: Callable[[int], None]) -> Difference | None:
        """Compute all steps before `until` again, and return the first difference. Calls `watch` after each step."""
        first = self.setup.shard.updates
        if (odd := self._other_digest(first)) is not None:
            text = f"the weights after {first} steps, from which this starts, are not those of the run: {odd}"
            return Difference(step=first, text=text)
        found: Difference | None = None
        trainer = SingleProcessTrainer(self.setup)
        for step in range(first, until):
            if found is not None:
                return found
            found = self._step(step, trainer)
            watch(step)
        return found

    def _step(self, step: int, trainer: SingleProcessTrainer) -> Difference | None:
        recorded = self._steps.get(step)
        if recorded is None:
            return Difference(step=step, text=f"step {step} is not in the ledger: expected its entry")
        try:
            trainer.step(step)
        except NotFiniteError as error:
            diverged = diverged_text("train", step, error.micro_batch, error.layer, error.quantity)
            text = f"{diverged}; in the run it was finite"
            return Difference(step=step, micro_batch=error.micro_batch, text=text)
        here = np.array(trainer.compute.losses, "<f4")
        if here.tobytes() != recorded.losses:
            return self._loss_difference(recorded, here)
        self.micro_batches += len(here)
        weights = self.setup.shard.weights
        if checksum_after(step, weights) != recorded.checksum:
            return self._weights_difference(recorded, "the checksum in the ledger")
        self.steps += 1
        odd = self._other_digest(step + 1)
        return None if odd is None else self._weights_difference(recorded, odd)

    def _loss_difference(self, recorded: StepDone, here: NDArray[np.float32]) -> Difference:
        there = recorded.loss_sums()
        if len(there) != len(here):
            text = f"step {recorded.step} has {len(there)} losses in the ledger: expected {len(here)}"
            return Difference(step=recorded.step, text=text)
        micro_batch = int(np.flatnonzero(there.view(np.uint32) != here.view(np.uint32))[0])
        text = (
            f"step {recorded.step}, micro-batch {micro_batch}: the sum of its losses was {there[micro_batch]!s} "
            f"({there[micro_batch].tobytes()[::-1].hex()}), {self._who(recorded, micro_batch)}; computed again it is "
            f"{here[micro_batch]!s} ({here[micro_batch].tobytes()[::-1].hex()})"
        )
        return Difference(step=recorded.step, micro_batch=micro_batch, text=text)

    def _who(self, recorded: StepDone, micro_batch: int) -> str:
        workers, found = self._workers[recorded.step], []
        for number, share in enumerate(recorded.shares):
            if share.lo <= micro_batch < share.hi:
                who = workers[share.rank].named() if share.rank in workers else "the single training process"
                is_known = number < len(recorded.processes)
                found.append(f"by {who}, process {recorded.processes[number]}" if is_known else f"by {who}")
        return " and ".join(found) or "by no worker"

    def _other_digest(self, steps: int) -> str | None:
        """Return which recorded digest differs from the current weights after that number of steps, if any."""
        if steps not in self._digests:
            return None
        here = weights_digest(self.setup.shard.weights)
        odd = (pair for pair in self._digests[steps] if pair[1] != here)
        return next((f"{named} has SHA-256 {digest[:12]}…, here {here[:12]}…" for named, digest in odd), None)

    def _weights_difference(self, recorded: StepDone, where: str) -> Difference:
        workers = "; ".join(f"{share.lo}-{share.hi - 1} {self._who(recorded, share.lo)}" for share in recorded.shares)
        text = (
            f"step {recorded.step}: the losses of all its micro-batches are the same, and the weights after it are not "
            f"({where}): a gradient differs, or the update; computed {workers}"
        )
        return Difference(step=recorded.step, text=text)


def check_chain(recorded: RecordedRun, setup: RunSetup) -> None:
    """Raise `DifferenceError` if the receipt's chain is not the ledger's."""
    chain = read_chain(setup.info, recorded.lines, str(recorded.folder / LEDGER))
    known = recorded.receipt.chain
    for link, ours in zip(known, chain, strict=False):
        if link != ours:
            raise DifferenceError(
                f"the receipt and the ledger disagree on epoch {ours.epoch}: {link.weights_sha256[:12]}… and "
                f"{ours.weights_sha256[:12]}…: one of them was changed"
            )
    if len(known) > len(chain):
        raise DifferenceError(f"the receipt has {len(known) - 1} epochs and the ledger {len(chain) - 1}")


def file_difference(run: RecordedRun, setup: RunSetup, steps: int) -> Difference | None:
    """Return which file of a finished run has other weights than those computed, or another digest than in its receipt.

    `setup` holds the weights after `steps` steps, which are compared if they are those of the run's end.
    """
    if (result := finished(run.folder)) is None:
        return None  # its files still change
    text = _weights_fault(run, setup, result) if steps == result.steps else ""
    text = text or next(filter(None, (_file_fault(run.folder, subject) for subject in run.subjects)), "")
    return Difference(step=steps, text=text) if text else None


def _weights_fault(run: RecordedRun, setup: RunSetup, result: RunResult) -> str:
    arrays, _ = read(run.folder / WEIGHTS)
    kept: Vector = setup.shard.weights.copy()
    setup.layout.write(kept, arrays)
    here = weights_digest(setup.shard.weights)
    if 0 < result.weights_epoch < len(result.history):
        # They were compared with the weights of that epoch.
        ends = (line for line in run.lines if isinstance(line, EpochDone) and line.epoch == result.weights_epoch)
        here = next((line.weights_sha256 for line in ends), "")
    for name, digest in ((WEIGHTS, weights_digest(kept)), (RESULT, result.weights_sha256)):
        if digest != here:
            return f"{run.folder / name} holds weights {digest[:12]}…, and the run computed {here[:12]}…"
    return ""


def _file_fault(folder: Path, subject: SubjectFile) -> str:
    with suppress(OSError):
        if subject_in(folder, subject.name) == subject:
            return ""
    return f"{folder / subject.name} has another SHA-256 than in {RECEIPT}: it was changed or removed"


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
