"""Opens the session of a run, new or resumed: the files in its folder, its recorder, its checkpointer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from lockstep.common.data.dataset import TrainTest
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.environment import demand_file_size
from lockstep.common.runtime.notice import notice
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder
from lockstep.ps.checkpoint.checkpointer import Checkpointer, CheckpointSchedule, bytes_of
from lockstep.ps.checkpoint.resuming import (
    Resumption,
    begin_again,
    check_identity,
    first_round,
    last_to_resume,
    resume,
)
from lockstep.ps.records.recorder import MetricsRecorder, Setting
from lockstep.ps.records.run_folder import CHECKPOINTS, RECEIPT, RunFolder, read_convictions, read_ledger, read_receipt
from lockstep.ps.setup import RunSetup, open_run
from lockstep.runs.run_dir import (
    claimed_run_dir,
    keep_examples,
    keep_files,
    keep_initial,
    make_run_dir,
    resumed_source,
    told_folder,
    trust_own,
)


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """The folder of a run, its options, and whether it resumes the run that is there."""

    folder: Path
    options: RunOptions
    is_resumed: bool = False
    #: As of `RunFacts`.
    part: str = ""


@contextmanager
def destination_of(job: Job, options: RunOptions, folder: Path | None, *, is_resumed: bool) -> Iterator[Destination]:
    """Give where the files of a run go: into its folder if it is resumed, or into one that is claimed for it."""
    if is_resumed:
        assert folder is not None  # it holds the run
        yield Destination(folder=folder, options=options, is_resumed=True)
        return
    trust_own(job)
    with claimed_run_dir(folder, job.model_name()) as claimed:
        yield Destination(folder=claimed, options=options)


def open_run_in(destination: Destination, job: Job, data: TrainTest) -> RunSetup:
    """Build what a run begins with, as `open_run`; one that is resumed, with the model that it began with."""
    folder = destination.folder
    source = resumed_source(folder, job) if destination.is_resumed else None
    return open_run(run_name(destination), job, data, destination.options, source, told_folder(folder))


def run_name(destination: Destination) -> str:
    """Return the name of a run: that of its folder when it began, wherever it is resumed."""
    if destination.is_resumed and (destination.folder / RECEIPT).exists():
        return read_receipt(destination.folder).run
    return destination.folder.name


class RunSession(msgspec.Struct, frozen=True, kw_only=True):
    """The records of a run, and the place at which it begins."""

    recorder: MetricsRecorder
    checkpointer: Checkpointer
    start: Resumption


def open_session(
    setup: RunSetup, setting: Setting, destination: Destination, clock: Clock, say: Callable[[str], None]
) -> RunSession:
    """Open the session of a run, in whose folder no other process may write from now on.

    Raises `UsageError` if the folder cannot be written to, is in use, or holds another run, or if this process may not
    write files as large as a checkpoint.
    """
    options, shard = destination.options, setup.shard
    demand_file_size(bytes_of(shard.weights, shard.state if options.checkpoint_keep else {}))
    folder = _opened_folder(setup, destination, say)
    convicted = read_convictions(folder.path)
    recorder = MetricsRecorder(setup.info, setting, setup.layout, folder)
    checkpoints = CheckpointFolder(folder.path / CHECKPOINTS, say, options.checkpoint_keep)
    try:
        start = _start(setup, recorder, folder, checkpoints, is_resumed=destination.is_resumed)
        schedule = CheckpointSchedule(
            every_steps=options.checkpoint_every_steps,
            every_s=options.checkpoint_every_seconds,
            last_steps=start.progress.steps,
            last_s=clock.now(),
        )
    except BaseException:
        folder.close()
        raise
    if convicted:
        # If the run went back, the ledger was cut off before their entries.
        known = read_ledger(folder.path) if folder.ledger.path.exists() else []
        recorder.add_entries(*(one for one in convicted if one not in known))
    start = replace(start, convicted={one.identity: one.why() for one in convicted})
    seen = (start.progress.steps, len(start.progress.history))
    checkpointer = Checkpointer(recorder, folder, checkpoints, schedule, clock, seen)
    return RunSession(recorder=recorder, checkpointer=checkpointer, start=start)


def _opened_folder(setup: RunSetup, destination: Destination, say: Callable[[str], None]) -> RunFolder:
    """Return the folder of a run, with the model's files, and report what users should know of the model."""
    if destination.is_resumed:
        folder = RunFolder(destination.folder, say)
    else:
        folder = make_run_dir(destination.folder, setup.info.job, destination.options, say)
    keep_files(folder.path, setup.source)
    if not destination.is_resumed:
        keep_initial(folder.path, setup)
        if destination.options.with_examples:
            keep_examples(folder.path, setup)
    for text in setup.notices:
        say(notice(text))
    if setup.model.taken:
        its_use = "evaluations take it; your loss gets all" if setup.own.loss else "the loss and evaluations take it"
        say(notice(f"the model returns several outputs: of these, {setup.model.taken}: {its_use}"))
    folder.ledger.open()
    return folder


def _start(
    setup: RunSetup, recorder: MetricsRecorder, folder: RunFolder, checkpoints: CheckpointFolder, *, is_resumed: bool
) -> Resumption:
    if not is_resumed:
        recorder.begin(setup.shard.digest())
        return first_round(setup)
    checkpoints.sweep()
    found = last_to_resume(checkpoints)
    if found is None:
        checkpoints.say(notice(f"starts over: {str(folder.path)!r} has no checkpoint to resume from"))
        return begin_again(setup, recorder, folder)
    checkpoint, best = found
    check_identity(checkpoint, setup.info, allows_mixed_numerics=setup.info.options.allow_mixed_numerics)
    start = resume(setup, recorder, folder, checkpoint)
    if best is not None:
        recorder.best, _ = best.held(setup.layout, setup.shard.state)
    checkpoints.set_aside(checkpoint.progress.steps)
    total = setup.info.plan.total_steps
    checkpoints.say(notice(f"resumes after step {checkpoint.progress.steps} of {total}, from {checkpoint.path}"))
    return start
