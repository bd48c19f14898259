"""Opens the books of a run, new or gone on with: the files of its folder, its record, the keeper of its checkpoints."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.runtime.clock import Clock
from lockstep.runs.launch import Launch
from lockstep.runs.run_dir import make_run_dir
from ps.checkpoint.checkpointer import Checkpointer
from ps.checkpoint.folder import CheckpointFolder
from ps.checkpoint.resuming import Resumption, begin_anew, beginning, best_of, check_identity, has_best, resume
from ps.checkpoint.schedule import CheckpointSchedule
from ps.records.metrics import MetricsRecorder, Setting
from ps.records.run_folder import CHECKPOINTS, RunFolder
from ps.setup import RunSetup


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a run's files go, how it is carried out, and whether it goes on from what is there."""

    folder: Path
    launch: Launch
    is_resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class RunSession:
    """What a run is recorded in, and where it begins."""

    recorder: MetricsRecorder
    keeper: Checkpointer
    start: Resumption


def open_session(
    opening: RunSetup, setting: Setting, destination: Destination, clock: Clock, say: Callable[[str], None]
) -> RunSession:
    """Open the books of a run, which nobody else may write to from now on.

    A `UsageError` where the folder cannot be written to, is in use, or has a run in it that is not this one.
    """
    launch = destination.launch
    folder = _folder(opening, destination, say)
    folder.ledger.open()
    recorder = MetricsRecorder(opening.facts, setting, opening.layout, folder)
    checkpoints = CheckpointFolder(folder.path / CHECKPOINTS, say, launch.checkpoint_keep)
    try:
        start = _start(opening, recorder, folder, checkpoints, is_resumed=destination.is_resumed)
    except BaseException:
        folder.close()
        raise
    cadence = CheckpointSchedule(
        every_steps=launch.checkpoint_every_steps,
        every_s=launch.checkpoint_every_seconds,
        last_steps=start.progress.steps,
        last_s=clock.now(),
    )
    seen = (start.progress.steps, len(start.progress.history))
    return RunSession(
        recorder=recorder, keeper=Checkpointer(recorder, folder, checkpoints, cadence, clock, seen), start=start
    )


def _folder(opening: RunSetup, destination: Destination, say: Callable[[str], None]) -> RunFolder:
    if destination.is_resumed:
        return RunFolder(destination.folder, say)
    return make_run_dir(destination.folder, opening.facts.job, destination.launch, say)


def _start(
    opening: RunSetup, recorder: MetricsRecorder, folder: RunFolder, checkpoints: CheckpointFolder, *, is_resumed: bool
) -> Resumption:
    if not is_resumed:
        recorder.begin(opening.shard.digest())
        return beginning(opening)
    checkpoints.sweep()
    checkpoint = next((found for found in checkpoints.back_from(sys.maxsize) if has_best(found, checkpoints)), None)
    if checkpoint is None:
        checkpoints.say(f"begins anew: {str(folder.path)!r} has no checkpoint to go on from")
        return begin_anew(opening, recorder, folder)
    check_identity(checkpoint, opening.facts, allows_mixed_numerics=opening.facts.allows_mixed_numerics)
    start = resume(opening, recorder, folder, checkpoint)
    if opening.facts.job.keep_best:
        recorder.best = best_of(checkpoint, checkpoints, opening)
    checkpoints.set_aside(checkpoint.past.steps)
    plan = opening.facts.plan
    checkpoints.say(f"goes on after step {checkpoint.past.steps} of {plan.total_steps}, from {checkpoint.path}")
    return start
