"""Trains a job on this machine, alone or with a cluster of processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from common.clock import SystemClock
from common.data.source import load
from common.errors import JobError, RunError
from common.job import Job
from lockstep.cluster import Cluster, check_launch
from lockstep.display import Display, print_plainly
from lockstep.launch import Launch
from lockstep.run_dir import make_run_dir
from lockstep.serial import SerialRun
from ps.opening import Admission, open_run
from ps.recorder import Recorder, Setting
from ps.run_folder import WEIGHTS, RunResult


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
    if launch.min_workers is not None and launch.min_workers > launch.workers:
        raise JobError(
            f"min_workers = {launch.min_workers!r} is more than workers = {launch.workers!r}, so the run would never "
            "begin: expected at most as many"
        )
    return Cluster(job, launch, folder, say=display.say, watch=display.show).run()


def train_alone(job: Job, launch: Launch, folder: Path, display: Display) -> RunResult:
    """Train in this process, without any transport."""
    clock = SystemClock()
    started = clock.now()
    opening = open_run(folder.name, job, load(job.data), Admission())
    setting = Setting(servers=0, transport="none", started=started)
    recorder = Recorder(opening.facts, setting, opening.layout, make_run_dir(folder, job, launch))
    recorder.begin(opening.shard.digest())
    return SerialRun(opening, recorder, clock, display.show).train()
