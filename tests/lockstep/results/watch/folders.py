"""Run folders for the page."""

from pathlib import Path

from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import default_options
from lockstep.results.watch.run_files import WatchedFiles
from lockstep.results.watch.run_view import RunView
from lockstep.runs.job_file import to_toml
from tests.lockstep.results.plots.records import TIMED_LEDGER, write_ledger, write_steps


def running(folder: Path, steps: int = 6) -> Path:
    """Write a run of two workers that has made some steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.toml").write_text(to_toml(Job(model="mlp", global_batch=8, micro_batches=4), default_options()))
    write_steps(folder, range(steps))
    write_ledger(folder, TIMED_LEDGER[: 3 + steps + (steps > 4)])
    return folder


def viewed(folder: Path, now: float = 1.0) -> RunView:
    """Return a view that has read all there is."""
    # By a clock of files that is slow, so that none is old.
    view = RunView(WatchedFiles(folder), file_time=lambda: 0.0)
    while view.refresh(now):
        pass
    return view
