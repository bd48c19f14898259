"""From a checkpoint to a run that continues as if it had never stopped."""

import sys
from collections import deque
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.errors import DataError, FileFormatError, JobError, ModelError, UsageError
from lockstep.common.files.reading import known_lines
from lockstep.common.job.tally import Tally
from lockstep.common.runtime.notice import warning
from lockstep.ps.checkpoint.checkpoint import Checkpoint, CheckpointFolder, CheckpointIdentity, RunProgress
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.parts.assembly import all_parts
from lockstep.ps.coordinator.parts.multi_step import FIRST_STEPS
from lockstep.ps.records.ledger import Line, RunBegun, StepDone
from lockstep.ps.records.receipt import read_chain
from lockstep.ps.records.recorder import MetricsRecorder
from lockstep.ps.records.run_folder import RunFolder, read_ledger
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round, best_epoch
from lockstep.ps.run.progress import Progress
from lockstep.ps.setup import RunSetup
from lockstep.ps.shard.shard import Shard


class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """The place at which a run begins or resumes."""

    round: Round
    progress: Progress
    #: By identity, which workers may not come back, and why.
    convicted: Mapping[str, str] = msgspec.field(default_factory=dict)


def first_round(setup: RunSetup) -> Resumption:
    """Return where a new run begins."""
    return Resumption(
        round=setup.info.plan.first(),
        progress=Progress(targets=setup.info.targets, guess=setup.info.guess, metrics=setup.info.metrics),
    )


def coordinator_of(info: RunInfo, start: Resumption, *, first_steps: int = FIRST_STEPS) -> Coordinator:
    """Return the coordinator of a run that begins or resumes there; the rest is as of `all_parts`."""
    parts = all_parts(first_steps=first_steps)
    return Coordinator(info, parts, progress=start.progress, start=start.round, convicted=start.convicted)


def begin_again(setup: RunSetup, recorder: MetricsRecorder, folder: RunFolder) -> Resumption:
    """Begin a run again that has no checkpoint: cut off all its lines, and return its beginning."""
    recorder.begin(setup.shard.digest(), lost_steps=_cut_lines(folder))
    return first_round(setup)


def check_identity(checkpoint: Checkpoint, info: RunInfo, *, allows_mixed_numerics: bool = False) -> None:
    """Raise a `UsageError` that names both if the job, the model, the data or the numerics are not the run's."""
    there, here, path = checkpoint.identity, CheckpointIdentity.of(info), checkpoint.path
    # The data may be somewhere else by now: its digest is compared below.
    if odd := there.job.changed_in(msgspec.structs.replace(here.job, data=there.job.data)):
        raise JobError(
            f"{path} belongs to another job: {odd}: expected the same; a new run may start from --initial {path}"
        )
    if there.source != here.source:
        raise ModelError(
            f"the file of model {here.job.model!r} has changed since {path} was written (SHA-256 {there.source[:12]}… "
            f"then, {here.source[:12]}… now): expected the same file"
        )
    if there.dataset != here.dataset:
        raise DataError(
            f"the dataset {here.job.data!r} has changed since {path} was written (SHA-256 {there.dataset[:12]}… then, "
            f"{here.dataset[:12]}… now): expected the same data"
        )
    differences = [] if allows_mixed_numerics else there.numerics.differences(here.numerics)
    if any(name == "code" for name, *_ in differences):
        raise UsageError(
            f"another version of Lockstep wrote {path}, and with this one the bits may differ (code "
            f"{there.numerics.code} then, {here.numerics.code} now): resume the run with that version; a new run may "
            f"start from --initial {path}"
        )
    if differences:
        named = "; ".join(f"{name} {was!r} in the run, {is_!r} here" for name, was, is_ in differences)
        raise UsageError(
            f"the numerics differ from those that wrote {path}, and so would the bits: {named}: use the machine and "
            "version of the run"
        )
    if there.layout != here.layout:
        raise ModelError(
            f"model {here.job.model_name()!r} has other parameters than when {path} was written, or other values of "
            "frozen ones: expected the same"
        )


def resume(setup: RunSetup, recorder: MetricsRecorder, folder: RunFolder, checkpoint: Checkpoint) -> Resumption:
    """Bring the shard, the record and the folder's files to where a checkpoint was taken; return what follows.

    `FileFormatError` if the folder's files are not those of the run.
    """
    saved = checkpoint.progress
    following = setup.info.plan.at(saved.steps, is_evaluated=saved.is_evaluated)
    if following is None:
        raise FileFormatError(
            f"{checkpoint.path}: is from the end of a run, so there is nothing to resume: remove the file"
        )
    fill(setup.shard, checkpoint, setup)
    lost = _cut_lines(folder, saved.metrics_bytes, saved.ledger_bytes)
    recorder.history = list(saved.history)
    recorder.steps = saved.steps
    recorder.setting = replace(recorder.setting, started=recorder.setting.started - saved.wall_s)
    recorder.chain = read_chain(setup.info, read_ledger(folder.path), str(folder.ledger.path))
    recorder.add_entries(
        RunBegun(step=saved.steps, weights_sha256=weights_digest(setup.shard.weights), lost_steps=lost)
    )
    return Resumption(
        round=following,
        progress=_progress(saved, setup.info),
    )


def last_to_resume(checkpoints: CheckpointFolder) -> tuple[Checkpoint, Checkpoint | None] | None:
    """Return the last checkpoint from which a run can be resumed, None without one; and that of its best epoch.

    A run that is to end with the best weights needs those so far: otherwise, and before the first epoch, it is None.
    """
    for checkpoint in checkpoints.back_from(sys.maxsize):
        job, saved = checkpoint.identity.job, checkpoint.progress
        best = best_epoch(job, saved.history) if job.keep_best else None
        if best is None:
            return checkpoint, None
        kept = next((found for found in checkpoints.back_from(saved.steps) if found.is_of(best)), None)
        if kept is not None:
            return checkpoint, kept
        checkpoints.say(warning(f"{checkpoint.path}: the best epoch's weights are gone: using the one before it"))
    return None


def fill(shard: Shard, checkpoint: Checkpoint, setup: RunSetup) -> None:
    """Let a shard of the whole vector hold what the checkpoint has."""
    weights, state = checkpoint.held(setup.layout, shard.state)
    # Both: if the current weights cannot be used, no earlier ones exist.
    for slot in shard.slots:
        slot[...] = weights
    for name, values in state.items():
        shard.state[name][...] = values
    shard.updates = checkpoint.progress.steps
    shard.refresh_served()


def _progress(saved: RunProgress, info: RunInfo) -> Progress:
    return Progress(
        **saved.totals(),
        targets=info.targets,
        guess=info.guess,
        metrics=info.metrics,
        before_s=saved.elapsed_s,
        epoch=Tally(saved.loss_sum, saved.count, saved.ignored, saved.weight, saved.metrics),
        history=[msgspec.structs.replace(epoch, weights_sha256="") for epoch in saved.history],
        recent=deque([(saved.train_s, saved.samples)]),
    )


def _cut_lines(folder: RunFolder, metrics_bytes: int = 0, ledger_bytes: int = 0) -> int:
    """Cut off the lines of steps after a checkpoint; return of how many steps there were any."""
    for file, size in ((folder.metrics, metrics_bytes), (folder.ledger, ledger_bytes)):
        file.open()
        if file.size() < size:
            raise FileFormatError(
                f"{file.path}: {file.size()} bytes: expected at least {size}, as when the checkpoint was written; put "
                "the run's own file back"
            )
    folder.metrics.cut(metrics_bytes)
    # After a loss of power there may be anything.
    return sum(isinstance(line, StepDone) for line in known_lines(folder.ledger.cut(ledger_bytes), Line))
