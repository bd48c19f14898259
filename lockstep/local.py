"""Trains a job on this machine, alone or with a cluster of processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from common.clock import SystemClock, wall_time
from common.data.source import load
from common.errors import RunError, UsageError
from common.job import Job
from lockstep.cluster import Cluster, check_launch
from lockstep.display import Display, print_plainly
from lockstep.job_file import to_toml
from lockstep.launch import Launch
from lockstep.serial import SerialRun
from ps.opening import Admission, open_run
from ps.recorder import Recorder, Setting
from ps.run_folder import WEIGHTS, RunFolder, RunResult

#: Where runs go that were given no folder.
RUNS = Path("runs")

#: The resolved job in a run's folder.
JOB = "job.toml"


def check_run_dir(folder: Path) -> Path:
    """Return the folder; `UsageError` where it holds something already, or could not be made or written to."""
    named = f"run folder {str(folder)!r}"
    above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        raise UsageError(f"{named}: {str(above)!r} is no folder: expected a new or an empty one")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{named}: {str(above)!r} cannot be written to: expected a folder of your own")
    if above == folder and any(folder.iterdir()):
        raise UsageError(f"{named} is not empty: expected a new or an empty one")
    return folder


def new_run_dir(model: str) -> Path:
    """Return a folder below `runs` that does not exist yet, named by the time and the model."""
    stem = f"{wall_time()}-{Path(model.partition(':')[0]).stem}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    return next(RUNS / name for name in names if not (RUNS / name).exists())


def make_run_dir(folder: Path, job: Job, launch: Launch) -> RunFolder:
    """Make the folder of a run whose job is known to be good, and write the resolved job into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOB).write_text(to_toml(job, launch), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to the run folder {str(folder)!r}: {error.strerror}") from error
    return RunFolder(folder)


@contextmanager
def kept_on_failure(console: Console, folder: Path) -> Iterator[None]:
    """Say where the weights are that a run which fails, or is interrupted, has come to."""
    try:
        yield
    except (RunError, KeyboardInterrupt):
        if (folder / WEIGHTS).exists():
            print_plainly(console, f"the last good weights are kept in {folder}")
        raise


def train_here(job: Job, launch: Launch, folder: Path, display: Display) -> RunResult:
    """Train to the end, showing the progress; the result is in `folder` too."""
    check_launch(launch)
    if launch.workers == 0:
        return train_alone(job, launch, folder, display)
    return Cluster(job, launch, folder, say=display.say, watch=display.show).run()


def train_alone(job: Job, launch: Launch, folder: Path, display: Display) -> RunResult:
    """Train in this process, without any transport."""
    clock = SystemClock()
    started = clock.now()
    opening = open_run(folder.name, job, load(job.data), Admission())
    setting = Setting(servers=0, transport="none", started=started)
    recorder = Recorder(opening.facts, setting, opening.layout, make_run_dir(folder, job, launch))
    return SerialRun(opening, recorder, clock, display.show).train()
