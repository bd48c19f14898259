"""Carries out the conviction of a worker that computes wrongly: quarantines checkpoints in doubt. A shell."""

from collections.abc import Callable

from lockstep.ps.checkpoint.checkpoint import DOUBTFUL, CheckpointFolder
from lockstep.ps.coordinator.findings import AuditFinding, Conviction
from lockstep.ps.records.ledger import Line, WorkerConvicted
from lockstep.ps.records.run_folder import (
    MOST_RESULTS,
    Doubt,
    RunFolder,
    doubt_of,
    keep_convictions,
    read_convictions,
    read_ledger,
)

#: Takes a checkpoint of the weights as they are; returns whether there is one.
TakeCheckpoint = Callable[[], bool]


def quarantine_checkpoints(
    conviction: Conviction, folder: RunFolder, checkpoints: CheckpointFolder, take: TakeCheckpoint
) -> tuple[int, list[str]]:
    """Quarantine all checkpoints that depend on results in doubt, and record the workers that were wrong.

    Return the steps after which the run can be resumed with right weights, and a line for each of these workers: which
    of its results are in doubt. Raises OSError, and FileFormatError if the run's files are damaged.

    In this order: if this process ends in between, the run resumes from right weights, and its next audits find the
    worker again.
    """
    folder.flush()
    # If a full disk has not taken all lines, it is not known which results are in doubt: then all are.
    lines: list[Line] | None = read_ledger(folder.path) if folder.ledger.is_written() else None
    doubts = [(one, Doubt([], []) if lines is None else doubt_of(lines, {one.identity})) for one in conviction.wrong]
    firsts = [doubt.first for _, doubt in doubts if doubt.first is not None]
    first = 0 if lines is None else min(firsts, default=None)
    if first is None:
        take()
    else:
        checkpoints.set_aside(first, DOUBTFUL)
    back_to = max(checkpoints.steps(), default=0)
    new = [_entry(conviction, finding, doubt, back_to) for finding, doubt in doubts]
    keep_convictions(folder.path, [*read_convictions(folder.path), *new])
    return back_to, [_text(entry) for entry in new]


def _entry(conviction: Conviction, finding: AuditFinding, doubt: Doubt, back_to: int) -> WorkerConvicted:
    return WorkerConvicted(
        worker=finding.named,
        identity=finding.identity,
        step=conviction.step,
        micro_batch=conviction.micro_batch,
        found=finding.found.recorded(),
        right=conviction.right.recorded(),
        judges=list(conviction.judges),
        since=list(doubt.since[-MOST_RESULTS:]),
        since_count=len(doubt.since),
        unconfirmed_count=len(doubt.results),
        first_unconfirmed=doubt.first,
        back_to=back_to,
    )


def _text(entry: WorkerConvicted) -> str:
    """Return the results of a worker that are in doubt."""
    if entry.first_unconfirmed is None:
        return f"{entry.worker}: no result of it was accepted that an audit has not confirmed"
    since = "none since its last audit that agreed"
    if entry.since:
        steps = f"steps {entry.since[0].step} to {entry.since[-1].step}"
        since = f"{entry.since_count:,} since its last audit that agreed, in {steps}"
    return (
        f"{entry.worker}: any of its results may be wrong that was accepted and not audited: "
        f"{entry.unconfirmed_count:,} from step {entry.first_unconfirmed} on, {since}"
    )
