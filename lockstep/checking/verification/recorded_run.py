"""A run as its folder records it, finished or not: to be checked, computed again, or inspected. Writes nothing."""

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import load
from lockstep.common.errors import JobError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.model.files import differing
from lockstep.common.protocol.fingerprint import DECIDING_FIELDS, Fingerprint
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.checkpoint.folder import CheckpointFolder
from lockstep.ps.checkpoint.resuming import fill
from lockstep.ps.records.ledger import Line, RunBegun, StepDone, WorkerIn
from lockstep.ps.records.receipt import Receipt, receipt_of
from lockstep.ps.records.run_folder import CHECKPOINTS, RECEIPT, read_ledger, read_receipt
from lockstep.ps.setup import RunSetup, open_run
from lockstep.runs.recorded_model import told_folder, trusted_source
from lockstep.runs.run_dir import JOB, has_begun, recorded_job
from lockstep.runs.trained_model import demand_data, job_with_data

#: The sources of a job's bits besides its numerics, by the names of a receipt's fields.
SUBJECTS = {
    "job_sha256": "job",
    "dataset_sha256": "dataset",
    "model_source_sha256": "source of the model",
    "layout_sha256": "model",
}


def causes(ours: Receipt, theirs: Receipt) -> list[str]:
    """Return why the bits of two runs may differ, the likeliest cause first."""
    here, there = ours.fingerprint(ours.run), theirs.fingerprint(theirs.run)
    named = [f"{name} {a!r} here, {b!r} there" for name, a, b in here.differences(there)]
    # With other numerics, nothing else matters.
    found = sorted(named, key=lambda text: not text.startswith("mode "))
    found += [
        f"the {what} differs: {_differing(ours, theirs, name)}"
        for name, what in SUBJECTS.items()
        if getattr(ours, name) != getattr(theirs, name)
    ]
    rest = [name for name in here.__struct_fields__ if name not in DECIDING_FIELDS[here.mode]]
    other = [name for name in rest if getattr(here, name) != getattr(there, name)]
    if not found and other:
        found = [f"{name} {getattr(here, name)!r} here, {getattr(there, name)!r} there" for name in other]
    return found


def _differing(ours: Receipt, theirs: Receipt, name: str) -> str:
    """Return both digests of a subject; of the model's source, those of each file that differs, if both list them."""
    if name == "model_source_sha256" and ours.model_files and theirs.model_files:
        return differing(ours.model_files, theirs.model_files)
    here, there = getattr(ours, name), getattr(theirs, name)
    return f"SHA-256 {here[:12] or 'none'}… here, {there[:12] or 'none'}… there"


def parting(ours: Receipt, theirs: Receipt) -> str:
    """Return where the weights of two runs are first different, empty if they never are."""
    for here, there in zip(ours.chain, theirs.chain, strict=False):
        if here.weights_sha256 != there.weights_sha256:
            when = f"after epoch {here.epoch}" if here.epoch else "before the first step"
            return f"weights {here.weights_sha256[:12]}… here and {there.weights_sha256[:12]}… there {when}"
    if len(ours.chain) != len(theirs.chain):
        return f"{len(ours.chain) - 1} epochs here and {len(theirs.chain) - 1} there, the same as far as both go"
    return ""


def comparison(ours: Receipt, theirs: Receipt) -> str:
    """Return in one line how two runs differ, empty if they computed the same weights after each epoch."""
    where = parting(ours, theirs)
    if not where:
        return ""
    why = "; ".join(causes(ours, theirs)) or "nothing that a receipt records: `lockstep verify` finds the first step"
    return f"{where}; what differs: {why}"


class RecordedRun(msgspec.Struct, frozen=True):
    """The records in a run's folder."""

    folder: Path
    job: Job
    receipt: Receipt
    #: The ledger's.
    lines: list[Line]
    #: The current place of its data, if that is not the one in the job.
    data: str | None = None

    def dataset(self, *, is_checked: bool = False) -> TrainTest:
        """Return the run's data as it was before a validation set was taken from it; raises as `demand_data`."""
        if self.data is None:
            demand_data(self.job)
        return load(self.data or self.job.data, is_checked=is_checked)

    def fingerprint(self) -> Fingerprint:
        return self.receipt.fingerprint(str(self.folder / RECEIPT))

    def steps(self) -> dict[int, StepDone]:
        return {line.step: line for line in self.lines if isinstance(line, StepDone)}


def read_run(folder: Path, data: str | None = None) -> RecordedRun:
    """Return what a folder records; `JobError` if it is not a run's, `FileFormatError` if a file of it is damaged.

    `data` is where the run's data is now, None if it is where it was; `DataError` if it is other data.
    """
    if not has_begun(folder):
        raise JobError(f"{str(folder)!r} holds no run: expected a run folder, with its {JOB}")
    job = recorded_job(folder)
    job_with_data(folder, job, data)  # raises if it is other data
    return RecordedRun(folder, job, read_receipt(folder), read_ledger(folder), data)


def open_again(run: RecordedRun, *, allows_mixed_numerics: bool) -> RunSetup:
    """Build what the run began with; a `UsageError` names both values if something here is not the run's."""
    options = RunOptions(allow_mixed_numerics=allows_mixed_numerics)
    source = trusted_source(run.folder, run.job)
    data = run.dataset(is_checked=True)
    setup = open_run(run.folder.name, run.job, data, options, source, told_folder(run.folder))
    here, there = receipt_of(setup.info, []), run.receipt
    for name, what in SUBJECTS.items():
        was, is_ = getattr(there, name), getattr(here, name)
        if was != is_:
            raise UsageError(
                f"the {what} is not the run's: SHA-256 {was[:12]}… then, {is_[:12]}… now: expected the same"
            )
    differences = other_numerics(run, setup)
    if run.fingerprint().is_of_older_version() and not allows_mixed_numerics:
        raise UsageError(
            f"the run in {str(run.folder)!r} is of an older version of lockstep, whose numerics were others, so other "
            "bits would prove nothing: use that version, or add --allow-mixed-numerics"
        )
    if differences and not allows_mixed_numerics:
        raise UsageError(
            f"the numerics differ from the run's, so other bits would prove nothing: {differences}: use the run's "
            "machine and version, or add --allow-mixed-numerics"
        )
    return setup


def other_numerics(run: RecordedRun, setup: RunSetup) -> str:
    """Return how the numerics here differ from those of a run, empty if they do not."""
    differences = run.fingerprint().differences(setup.info.fingerprint)
    return "; ".join(f"{name} {was!r} in the run, {is_!r} here" for name, was, is_ in differences)


def load_checkpoint_before(setup: RunSetup, folder: Path, step: int, say: Callable[[str], None]) -> None:
    """Load the last whole checkpoint up to a step into the shard of `setup`, if there is one."""
    checkpoint = next(CheckpointFolder(folder / CHECKPOINTS, say).back_from(step), None)
    if checkpoint is not None:
        fill(setup.shard, checkpoint, setup)


def workers_by_step(lines: Iterable[Line]) -> dict[int, dict[int, str]]:
    """Return the name of each worker, by step and rank: ranks start again when a run is resumed."""
    named: dict[int, str] = {}
    found: dict[int, dict[int, str]] = {}
    for line in lines:
        if isinstance(line, RunBegun):
            named = {}
        elif isinstance(line, WorkerIn):
            named = {**named, line.rank: line.named()}
        elif isinstance(line, StepDone):
            found[line.step] = named
    return found
